// Package backend holds what can be chosen, and how: backends, groups of them, and balancers.
//
// A [Backend] is one server: its address, its limits, whether it is up, and how many sessions it has. A [Group] chooses
// one of its backends for a session and takes a slot on it, in one step; the [Lease] it returns gives the slot back.
//
//	b1, err := backend.New(backend.Config{Address: "10.0.0.1:5432", Weight: 1, MaxConnections: 100})
//	if err != nil {
//		return err
//	}
//	b2, err := backend.New(backend.Config{Address: "10.0.0.2:5432", Weight: 2, MaxConnections: 200})
//	if err != nil {
//		return err
//	}
//	group, err := backend.NewGroup(backend.GroupConfig{Name: "db", Backends: []*backend.Backend{b1, b2}})
//	if err != nil {
//		return err
//	}
//	lease, err := group.Lease(backend.Key(client), nil)
//	if err != nil {
//		return err // ErrNone: nobody can serve; ErrFull: wait for Group.OnFreed
//	}
//	defer lease.Release()
//	conn, err := net.Dial("tcp", lease.Backend().Address())
//
// # Who may be chosen
//
// A backend is usable when it is up, its state is [Ready] and its weight is not 0. Only the lowest tier that has a usable
// backend is used; a tier that is merely full does not fall through to the next one, its sessions wait. Backends that
// the session tried already are left out as long as there is another usable one, in a later tier if need be.
//
// # Cost
//
// Lease and Release take no lock: they read one atomic pointer to an immutable view of the group and count with atomics.
// Choosing costs about the same among 10,000 backends as among 10. Every change of health, state, weight or limit makes a
// new view before the setter returns, in time proportional to the number of backends (some 70 µs and 60 KB for 10,000); changes that
// come together share one.
package backend
