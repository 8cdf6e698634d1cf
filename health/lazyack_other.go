//go:build !linux

package health

import "syscall"

var lazyACK func(network, address string, c syscall.RawConn) error
