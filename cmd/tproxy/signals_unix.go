//go:build unix

package main

import (
	"os"
	"syscall"
)

const (
	quitSignal    = syscall.SIGQUIT
	reloadSignal  = syscall.SIGHUP
	reopenSignal  = syscall.SIGUSR1
	upgradeSignal = syscall.SIGUSR2
)

var handledSignals = []os.Signal{syscall.SIGTERM, os.Interrupt, quitSignal, reloadSignal, reopenSignal, upgradeSignal}
