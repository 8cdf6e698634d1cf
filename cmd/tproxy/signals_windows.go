package main

import (
	"os"
	"syscall"
)

// Windows has none of these; the numbers are never delivered.
const (
	quitSignal    = syscall.Signal(-1)
	reloadSignal  = syscall.Signal(-2)
	reopenSignal  = syscall.Signal(-3)
	upgradeSignal = syscall.Signal(-4)
)

var handledSignals = []os.Signal{syscall.SIGTERM, os.Interrupt}
