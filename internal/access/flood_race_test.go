//go:build race

package access

// flood is how many sources come in the tests of memory: fewer with the race detector, which makes each cost ten times as much.
const flood = 100_000
