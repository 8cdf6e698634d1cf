// Package handover replaces a running program by its successor, which serves on the same listening sockets: no client is refused
// meanwhile, nor lost in a queue.
//
// The old process starts the new one with duplicates of its sockets, each under a name, and waits for a word:
//
//	s, err := handover.Command{Path: path, Args: os.Args, Env: os.Environ(), Sockets: sockets}.Start()
//	…
//	taken, err := s.Ready(ctx) // on an error the successor is gone, and nothing has changed
//
// The new process takes what it wants, begins to accept, and says so; what it did not take is closed then:
//
//	in, err := handover.Receive()
//	…
//	listeners, err := in.Take("web")
//	…
//	err = in.Ready()
//
// From then on both accept, until the old one closes its listeners. It may go on with the sessions that it has, beside any
// number of successors.
//
// The sockets are in non-blocking mode before, during and after: the mode belongs to the socket, not to the
// descriptor, and a process that cleared it would block the other one.
package handover

// variable names the inherited sockets to a successor: a JSON list of strings. Descriptor 3 is the pipe, the sockets follow.
const variable = "HANDOVER_SOCKETS"

// ready is what a successor writes into the pipe, as one line of JSON, when it serves.
type ready struct {
	PID   int      `json:"pid"`
	Taken []string `json:"taken"` // names of sockets
}
