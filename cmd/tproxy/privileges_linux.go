package main

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// keepBinding prepares for a change of user that leaves CAP_NET_BIND_SERVICE; what it returns must be called after it. The capability is
// ambient then, so a successor has it too, and so has what a probe of kind exec starts. A program linked with cgo cannot set
// capabilities of all its threads, and loses it.
func keepBinding() (finish func() (kept bool, err error), err error) {
	had, err := mayBind()
	if err != nil {
		return nil, err
	}
	keep := had && everyThread(unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1, 0) == nil
	return func() (bool, error) {
		// Without this /proc/self would belong to root, and its descriptors could not be counted.
		if err := unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0); err != nil {
			return false, fmt.Errorf("prctl(PR_SET_DUMPABLE): %w", err)
		}
		if !keep {
			return false, nil
		}
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		only := [2]unix.CapUserData{{Effective: bindCapability, Permitted: bindCapability, Inheritable: bindCapability}}
		if err := everyThread(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&only)), 0); err != nil {
			return false, fmt.Errorf("capset: %w", err)
		}
		// Only for successors; a kernel or a sandbox without ambient capabilities is none to fail for.
		ambient := everyThread(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_BIND_SERVICE)
		return ambient == nil, nil
	}, nil
}

const bindCapability = 1 << unix.CAP_NET_BIND_SERVICE

func mayBind() (bool, error) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var have [2]unix.CapUserData
	if err := unix.Capget(&header, &have[0]); err != nil {
		return false, fmt.Errorf("capget: %w", err)
	}
	return have[0].Permitted&bindCapability != 0, nil
}

// everyThread makes a system call on all threads of the process.
//
//go:uintptrescapes
func everyThread(trap, a1, a2, a3 uintptr) error {
	_, _, e := syscall.AllThreadsSyscall6(trap, a1, a2, a3, 0, 0, 0)
	if e == 0 {
		return nil
	}
	return e
}
