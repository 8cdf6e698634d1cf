//go:build !race

package access

// flood is how many sources come in the tests of memory.
const flood = 1_000_000
