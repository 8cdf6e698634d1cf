package reactor

import (
	"errors"
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/windows"
)

const canWatch = false

func setBacklog(net.Listener, int) error { return nil }

func hasReset(syscall.RawConn, bool) bool { return false }

func duplicateFile(syscall.Conn, string) (*os.File, error) { return nil, errors.ErrUnsupported }

func queueOf(net.Listener) *os.File { return nil }

func awaitClient(*os.File) {}

func isRefused(err error) bool { return errors.Is(err, windows.WSAECONNREFUSED) }

func isAborted(err error) bool {
	return errors.Is(err, windows.WSAECONNABORTED) || errors.Is(err, windows.WSAECONNRESET) ||
		errors.Is(err, windows.WSAEINTR) || errors.Is(err, windows.ERROR_NETNAME_DELETED)
}

func isShortage(err error) bool {
	return errors.Is(err, windows.WSAEMFILE) || errors.Is(err, windows.WSAENOBUFS)
}

func look(syscall.RawConn) sight { return sight{} }
