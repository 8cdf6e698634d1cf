package proxy

import (
	"testing"
	"unsafe"
)

func TestASessionIsSmall(t *testing.T) {
	if n := unsafe.Sizeof(session{}); n > 160 {
		t.Errorf("a session has %d bytes, more than the size class of 160", n)
	}
}
