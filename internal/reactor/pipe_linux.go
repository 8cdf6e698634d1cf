package reactor

import "syscall"

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

func (p *pipes) get(k kernel) (*pipe, syscall.Errno) {
	if n := len(p.idle); n > 0 {
		x := p.idle[n-1]
		p.idle = p.idle[:n-1]
		return x, 0
	}
	r, w, size, e := k.pipe()
	if e != 0 {
		return nil, e
	}
	return &pipe{r: r, w: w, size: size}, 0
}

// put takes x back; one with bytes in it is closed with them.
func (p *pipes) put(k kernel, x *pipe) {
	if x.held == 0 && len(p.idle) < idlePipes {
		p.idle = append(p.idle, x)
		return
	}
	x.close(k)
}

func (x *pipe) close(k kernel) {
	k.close(x.r, false)
	k.close(x.w, false)
}

func (p *pipes) close(k kernel) {
	for _, x := range p.idle {
		x.close(k)
	}
	p.idle = nil
}
