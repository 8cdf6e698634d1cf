//go:build unix

package main

import (
	"os"
	"syscall"
)

const (
	reloadSignal  = syscall.SIGHUP
	reopenSignal  = syscall.SIGUSR1
	upgradeSignal = syscall.SIGUSR2
	brokenPipe    = syscall.SIGPIPE
)

var (
	stopSignals    = []os.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGQUIT}
	handledSignals = append([]os.Signal{reloadSignal, reopenSignal, upgradeSignal}, stopSignals...)
)
