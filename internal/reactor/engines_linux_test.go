package reactor_test

import "github.com/tproxy/tproxy/internal/reactor"

func init() {
	engines["epoll"] = func() (reactor.Engine, error) { return reactor.NewEpoll(2) }
}
