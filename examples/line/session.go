package line

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

var aLongTimeAgo = time.Unix(1, 0)

// session answers the lines of c until QUIT, the client's FIN, a timeout or the server's stop, and closes c.
func (s *Server) session(c net.Conn) {
	defer s.removeSession(c)
	defer c.Close()
	r := bufio.NewReaderSize(&lineSource{c, s}, s.maxLine())
	w := bufio.NewWriter(&timedWriter{c, s.writeTimeout()})
	var answer []byte
	for quit := false; !quit; {
		line, err := r.ReadSlice('\n')
		verb, arg := parse(line)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			answer, quit = fmt.Appendf(answer[:0], "ERR the line is longer than %d bytes\n", s.maxLine()), true
		case err != nil && (!errors.Is(err, io.EOF) || len(line) == 0):
			quit = true
			answer = answer[:0]
		case verb == "" && len(arg) == 0:
			answer = answer[:0]
		default:
			answer, quit = s.appendAnswer(answer[:0], verb, arg)
		}
		if _, err := w.Write(answer); err != nil {
			return
		}
		// One write answers all the lines that came in one read.
		if quit || r.Buffered() == 0 {
			if w.Flush() != nil {
				return
			}
		}
	}
	linger(c)
}

// linger ends c so that the last answer arrives: closing a socket with unread bytes in it resets the connection, and a reset may overtake the
// answer. It reads for at most a second and a megabyte.
func linger(c net.Conn) {
	half, ok := c.(interface{ CloseWrite() error })
	if !ok || half.CloseWrite() != nil {
		return
	}
	c.SetReadDeadline(time.Now().Add(time.Second))
	io.CopyN(io.Discard, c, 1<<20)
}

// A lineSource reads from a connection and gives up after the idle timeout, or at once when the server stops.
type lineSource struct {
	c net.Conn
	s *Server
}

func (l *lineSource) Read(p []byte) (int, error) {
	l.c.SetReadDeadline(time.Now().Add(l.s.idleTimeout()))
	// A stop that came before the line above has just been forgotten.
	if l.s.stopping.Load() {
		l.c.SetReadDeadline(aLongTimeAgo)
	}
	return l.c.Read(p)
}

// A timedWriter gives up when one write takes longer than limit.
type timedWriter struct {
	c     net.Conn
	limit time.Duration
}

func (t *timedWriter) Write(p []byte) (int, error) {
	t.c.SetWriteDeadline(time.Now().Add(t.limit))
	return t.c.Write(p)
}
