package reactor

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	soNWrite           = 0x1024 // SO_NWRITE, <sys/socket.h>: bytes in the send queue
	tcpRxtConnDropTime = 0x80   // TCP_RXT_CONNDROPTIME, <netinet/tcp.h>: seconds of retransmitting until the peer is dead
)

func setUserTimeout(raw syscall.RawConn, d time.Duration) error {
	return control(raw, func(fd int) error {
		return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, tcpRxtConnDropTime, int((d+time.Second-1)/time.Second))
	})
}

func dialControl(Addr) func(string, string, syscall.RawConn) error { return nil }

func sendQueue(raw syscall.RawConn, _ bool) (unsent int, mark uint64, known bool) {
	err := control(raw, func(fd int) (err error) {
		unsent, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, soNWrite)
		return err
	})
	return unsent, uint64(unsent), err == nil
}
