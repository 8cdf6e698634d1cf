package health

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"time"
)

// Exec is the probe that runs a program, and passes when it exits with status 0. The program gets what it needs in its environment,
// besides ours: TPROXY_GROUP, TPROXY_BACKEND (the name) and TPROXY_ADDRESS. When its time is over it is killed
// with its whole process group.
type Exec struct {
	// Command is the program and its arguments; there is no shell.
	Command []string
}

// Probe implements [Prober].
func (p Exec) Probe(ctx context.Context, t Target) error {
	if len(p.Command) == 0 {
		return errors.New("exec: no command")
	}
	cmd := exec.CommandContext(ctx, p.Command[0], p.Command[1:]...)
	cmd.Env = append(os.Environ(), "TPROXY_GROUP="+t.Group, "TPROXY_BACKEND="+t.Backend, "TPROXY_ADDRESS="+t.Address)
	var said firstLine
	cmd.Stdout, cmd.Stderr = &said, &said
	ownGroup(cmd)
	cmd.WaitDelay = 100 * time.Millisecond // for a child in another group that holds the output open
	err := cmd.Run()
	switch {
	case errors.Is(err, exec.ErrWaitDelay):
		return nil
	case err != nil && ctx.Err() != nil:
		return fmt.Errorf("%s: killed: %w", p.Command[0], ctx.Err())
	case err != nil && len(said.text) > 0:
		return fmt.Errorf("%s: %w: %s", p.Command[0], err, quoted(said.text))
	case err != nil:
		return fmt.Errorf("%s: %w", p.Command[0], err)
	}
	return nil
}

// firstLine keeps the first line that is written to it, or the beginning of it.
type firstLine struct {
	text []byte
	full bool
}

func (f *firstLine) Write(b []byte) (int, error) {
	if !f.full {
		line, _, ended := bytes.Cut(b, []byte("\n"))
		f.text = append(f.text, line[:min(len(line), 256-len(f.text))]...)
		f.full = ended || len(f.text) == 256
	}
	return len(b), nil
}
