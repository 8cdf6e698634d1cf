package main

import "testing"

func TestSocketsAreFoundByAddress(t *testing.T) {
	for _, tt := range []struct {
		listener, address, want string
	}{
		{"web", "127.0.0.1:80", "127.0.0.1:80"},
		{"other", "127.0.0.1:80", "127.0.0.1:80"}, // a listener may be renamed
		{"web", ":5432", ":5432"},
		{"web", "unix:/run/x", "unix:/run/x"},
		{"web", "fd:web", "fd:web"},
		{"web", "127.0.0.1:0", "web 127.0.0.1:0"}, // which of the two it is the address does not say
		{"other", "127.0.0.1:0", "other 127.0.0.1:0"},
		{"", "127.0.0.1:0", " 127.0.0.1:0"},
	} {
		if got := socketName(tt.listener, tt.address); got != tt.want {
			t.Errorf("%s at %s: %q, want %q", tt.listener, tt.address, got, tt.want)
		}
	}
}
