// Package pool holds what belongs to the connections of one backend or one group before a session has one: the [Queue]
// of sessions that wait, and the [Pool] of spares, connections dialed before a client asks.
package pool
