package main

import (
	"os"
	"syscall"
)

// Windows has none of these; the numbers are never delivered.
const (
	reloadSignal  = syscall.Signal(-2)
	reopenSignal  = syscall.Signal(-3)
	upgradeSignal = syscall.Signal(-4)
	brokenPipe    = syscall.Signal(-5)
)

var (
	stopSignals    = []os.Signal{syscall.SIGTERM, os.Interrupt}
	handledSignals = stopSignals
)
