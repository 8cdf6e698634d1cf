//go:build !linux && !darwin

package reactor

import (
	"syscall"
	"time"
)

func setUserTimeout(syscall.RawConn, time.Duration) error { return nil }

func dialControl(Addr) func(string, string, syscall.RawConn) error { return nil }

func sendQueue(syscall.RawConn, bool) (unsent int, mark uint64, known bool) { return 0, 0, false }
