package backend

import "fmt"

// A State is what an operator wants of a backend, whatever its health.
type State uint8

// States. The zero State is Ready.
const (
	Ready State = iota // serves
	Drain              // keeps its sessions, gets no new ones
	Maint              // as Drain, and is not probed
)

var stateText = [...]string{Ready: "ready", Drain: "drain", Maint: "maint"}

// String is the word of the configuration and the commands.
func (s State) String() string {
	if int(s) < len(stateText) {
		return stateText[s]
	}
	return fmt.Sprintf("state(%d)", uint8(s))
}

// ParseState is the inverse of String.
func ParseState(text string) (State, error) {
	for s, word := range stateText {
		if word == text {
			return State(s), nil
		}
	}
	return 0, fmt.Errorf("state %q: not one of ready, drain, maint", text)
}

// MarshalText implements [encoding.TextMarshaler].
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler] with [ParseState].
func (s *State) UnmarshalText(text []byte) (err error) {
	*s, err = ParseState(string(text))
	return err
}
