package proxy

// Descriptors returns 0, 0: Windows has no limit of its own on sockets.
func Descriptors(int) (limit, sessions int, err error) { return 0, 0, nil }
