//go:build unix && !linux

package reactor

import "syscall"

// hasReset must not be asked after a FIN was sent: a write of nothing then fails as it does after a reset. A unix
// socket cannot be told from one whose peer was closed in order.
func hasReset(raw syscall.RawConn, tcp bool) bool {
	return tcp && control(raw, func(fd int) error {
		_, err := syscall.Write(fd, nil)
		if err == syscall.EAGAIN {
			return nil
		}
		return err
	}) != nil
}
