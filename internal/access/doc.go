// Package access decides who may come in: by prefix ([Rules]), by how many sessions a source has ([Sources]), by how often it
// comes ([Rates]), and how often anybody comes ([Rate]). It opens no socket, starts no goroutine, and what it remembers of
// strangers is bounded however many there are.
//
// Times are durations since any fixed moment, the same for all calls, that never go back; they are never negative.
package access
