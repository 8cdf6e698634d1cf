package reactor

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// A pipe carries spliced bytes; it is held by a direction only while bytes are in it or the stream runs.
type pipe struct {
	r, w int32
	size int // capacity
	held int // bytes in it
}

// pipes is a loop's pool of empty pipes. It belongs to the goroutine of the loop.
type pipes struct {
	idle []*pipe
}

const (
	pipeSize  = 1 << 20 // the most an unprivileged process may ask for by default (fs.pipe-max-size)
	idlePipes = 32      // kept for the next stream
)

func (p *pipes) get() (*pipe, syscall.Errno) {
	if n := len(p.idle); n > 0 {
		x := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return x, 0
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		return nil, err.(syscall.Errno)
	}
	x := &pipe{r: int32(fds[0]), w: int32(fds[1]), size: 64 << 10}
	if n, err := unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize); err == nil {
		x.size = n // less when the user's pipes use too many pages: EPERM leaves 64 KiB
	}
	return x, 0
}

// put takes x back; one with bytes in it is closed with them.
func (p *pipes) put(x *pipe) {
	if x.held == 0 && len(p.idle) < idlePipes {
		p.idle = append(p.idle, x)
		return
	}
	x.close()
}

func (x *pipe) close() {
	unix.Close(int(x.r))
	unix.Close(int(x.w))
}

func (p *pipes) close() {
	for _, x := range p.idle {
		x.close()
	}
	p.idle = nil
}
