//go:build linux

package main

import (
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
)

// This program is its own backend: with this argument it listens where listenVariable says, prints the address and serves until it is ended.
const (
	backendCommand = "backend"
	listenVariable = "BENCH_LISTEN"
)

// The first byte of a connection asks for a role.
const (
	roleEcho   = 'e' // send back what comes
	roleSource = 's' // send as many bytes as the next eight bytes say (big endian), then FIN
	roleSink   = 'k' // read until FIN, then send the count in eight bytes (big endian)
)

// serveBackend serves until something fails.
func serveBackend() error {
	address := os.Getenv(listenVariable)
	if address == "" {
		address = "127.0.0.1:0"
	}
	ln, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	fmt.Println(ln.Addr())
	return serve(ln)
}

// serve answers every connection, and returns the error that ends accepting.
func serve(ln net.Listener) error {
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go answer(c)
	}
}

// answer plays the role that c asks for. Errors end it: the load sees them.
func answer(c net.Conn) {
	defer c.Close()
	var role [1]byte
	if _, err := io.ReadFull(c, role[:]); err != nil {
		return
	}
	switch role[0] {
	case roleEcho:
		buf := make([]byte, 4<<10)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			if _, err := c.Write(buf[:n]); err != nil {
				return
			}
		}
	case roleSource:
		var count [8]byte
		if _, err := io.ReadFull(c, count[:]); err != nil {
			return
		}
		buf := make([]byte, 256<<10)
		for left := binary.BigEndian.Uint64(count[:]); left > 0; {
			n, err := c.Write(buf[:min(left, uint64(len(buf)))])
			if err != nil {
				return
			}
			left -= uint64(n)
		}
	case roleSink:
		buf := make([]byte, 256<<10)
		var total uint64
		for {
			n, err := c.Read(buf)
			total += uint64(n)
			if err == io.EOF {
				break
			}
			if err != nil {
				return
			}
		}
		c.Write(binary.BigEndian.AppendUint64(nil, total))
	}
}
