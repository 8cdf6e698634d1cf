package reactor

// New starts the engine of that name: "auto" (epoll in Linux, else portable), "epoll" or "portable".
func New(name string) (Engine, error) {
	if name == "portable" {
		return NewPortable(), nil
	}
	return NewEpoll(0)
}
