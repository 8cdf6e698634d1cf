package health

import "syscall"

// lazyACK delays the last packet of the handshake, so that the reset of a quiet probe comes instead of it and the backend
// never accepts. Where the kernel does otherwise the probe is less quiet, and as good.
func lazyACK(_, _ string, c syscall.RawConn) error {
	return c.Control(func(fd uintptr) {
		_ = syscall.SetsockoptInt(int(fd), syscall.IPPROTO_TCP, syscall.TCP_QUICKACK, 0)
	})
}
