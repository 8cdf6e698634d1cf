package backend

import "fmt"

// A Balance is a rule by which a group chooses among its usable backends. All are weighted but First.
type Balance uint8

// Balances. The zero Balance is LeastConn.
const (
	// LeastConn takes the backend with the fewest sessions for its weight. Up to 64 candidates this is exact, and equal
	// ones take turns; above, it is the best of four taken at random.
	LeastConn Balance = iota
	// RoundRobin takes turns, smoothly: over one whole cycle the shares are exactly the weights.
	RoundRobin
	// Random takes two at random and of these the one with fewer sessions for its weight.
	Random
	// SourceHash takes the same backend for the same key, in every process with the same backends, whatever their
	// order. Losing a backend moves only its keys, a new one takes keys only for itself.
	SourceHash
	// First takes the first in the list that has a free slot. Weights do not count, except 0.
	First
)

var balanceText = [...]string{LeastConn: "least_conn", RoundRobin: "round_robin", Random: "random", SourceHash: "source_hash", First: "first"}

// String is the word of the configuration.
func (b Balance) String() string {
	if int(b) < len(balanceText) {
		return balanceText[b]
	}
	return fmt.Sprintf("balance(%d)", uint8(b))
}

// ParseBalance is the inverse of String.
func ParseBalance(text string) (Balance, error) {
	for b, word := range balanceText {
		if word == text {
			return Balance(b), nil
		}
	}
	return 0, fmt.Errorf("balance %q: not one of round_robin, least_conn, random, source_hash, first", text)
}

// MarshalText implements [encoding.TextMarshaler].
func (b Balance) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler] with [ParseBalance].
func (b *Balance) UnmarshalText(text []byte) (err error) {
	*b, err = ParseBalance(string(text))
	return err
}
