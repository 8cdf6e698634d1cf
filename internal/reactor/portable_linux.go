package reactor

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

func setUserTimeout(raw syscall.RawConn, d time.Duration) error {
	return control(raw, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(milliseconds(d)))
	})
}

// dialControl leaves the choice of the port to connect(2), which knows the destination: more than 64k connections can
// go out from one address.
func dialControl(source Addr) func(string, string, syscall.RawConn) error {
	if !source.IP.IsValid() || source.IP.Port() != 0 {
		return nil
	}
	return func(_, _ string, raw syscall.RawConn) error {
		control(raw, func(fd int) error {
			return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		})
		return nil
	}
}

// sendQueue returns what the peer has not acknowledged, and for TCP how much it has.
func sendQueue(raw syscall.RawConn, tcp bool) (unsent int, mark uint64, known bool) {
	err := control(raw, func(fd int) (err error) {
		unsent, err = unix.IoctlGetInt(fd, unix.SIOCOUTQ)
		mark = uint64(unsent)
		if err != nil || !tcp || unsent == 0 {
			return err
		}
		info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err == nil {
			mark = info.Bytes_acked
		}
		return err
	})
	return unsent, mark, err == nil
}

// hasReset must not be asked after a FIN was sent. It takes nothing from the socket, not even its error.
func hasReset(raw syscall.RawConn, tcp bool) bool {
	reset := false
	control(raw, func(fd int) error {
		p := []unix.PollFd{{Fd: int32(fd)}}
		if _, err := unix.Poll(p, 0); err != nil {
			return err
		}
		// POLLERR is an error that nobody has read yet. Without it a TCP socket hangs up when it was reset, and a
		// unix socket also when its peer was closed in order.
		reset = p[0].Revents&unix.POLLERR != 0 || tcp && p[0].Revents&unix.POLLHUP != 0
		return nil
	})
	return reset
}

func look(raw syscall.RawConn) (s sight) {
	control(raw, func(fd int) (err error) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		if _, err = unix.Poll(p, 0); err != nil {
			return err
		}
		s.ended = p[0].Revents&(unix.POLLRDHUP|unix.POLLERR|unix.POLLHUP) != 0
		s.waiting, err = unix.IoctlGetInt(fd, unix.SIOCINQ)
		return err
	})
	return s
}
