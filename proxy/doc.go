// Package proxy accepts TCP and unix connections and splices each to a backend of a group. It is the part of tproxy that other programs
// can use: what tproxy does with a configuration file, a program does with the fields of a [Server].
//
// This program spreads what comes to port 5432 over two servers:
//
//	package main
//
//	import (
//		"log"
//
//		"github.com/tproxy/tproxy/backend"
//		"github.com/tproxy/tproxy/proxy"
//	)
//
//	func main() {
//		var backends []*backend.Backend
//		for _, address := range []string{"10.0.0.1:5432", "10.0.0.2:5432"} {
//			b, err := backend.New(backend.Config{Address: address, Weight: 1})
//			if err != nil {
//				log.Fatal(err)
//			}
//			backends = append(backends, b)
//		}
//		group, err := backend.NewGroup(backend.GroupConfig{Name: "db", Backends: backends})
//		if err != nil {
//			log.Fatal(err)
//		}
//		srv := &proxy.Server{Settings: proxy.Settings{Group: &proxy.Group{Backends: group}}}
//		log.Fatal(srv.ListenAndServe(":5432"))
//	}
//
// # A session
//
// A session is one client connection, and its backend connection once there is one. It goes one way:
//
//	accept → admit → lease a backend → connect → relay → close
//
// While something is to be decided it has a goroutine; while bytes move, or nothing does, it has none, but belongs to an event loop. Each
// direction ends on its own: a FIN is passed on when everything before it was delivered. A reset is passed on as a reset, so that a stream that
// was cut never looks complete; that is also how a session ends that is idle, too old, or killed.
//
// A session connects again, to another backend if there is one, only while no byte of the client has reached a backend. See [Connect].
//
// # Limits
//
// [Settings].MaxConnections bounds the sessions of a server, a [Limit] those of several. At a limit nothing is accepted, and the
// kernel's queue keeps the clients; RejectWhenFull resets them instead. A limit that shrinks cuts nobody. Where a backend
// has a limit of its own, sessions wait for it in [Group].Queue.
//
// # What it tells
//
// An [Observer] gets an [Event] at each transition of a session. Every session that was accepted has one [SessionAccepted], its first, and one
// [SessionClosed] with a [Reason], its last. The package never logs. What is going on now is in [Server.Sessions] and [Server.Traffic].
//
// # Stopping
//
// [Server.Shutdown] stops accepting and waits for the sessions, [Server.Close] resets them, [Server.Shed] ends them little by little.
// When Shutdown has returned nil, or Close anything, no goroutine, descriptor or lease of the server is left, and every event was observed.
package proxy
