// Package pool holds what belongs to the connections of a backend or a group before a session has one: the [Pool] of spares,
// which are connections to one backend dialed before anybody asks, and the [Queue] of sessions that wait because
// every backend of their group is at its cap, or none is usable.
//
//	p := pool.New(pool.Config[*conn]{
//		Dial:       dial,
//		Warm:       4,
//		MaxAge:     8 * time.Second,
//		RefillRate: 50,
//	})
//	go p.Run(ctx)            // dials, renews, closes at the end
//	l, err := p.Get(ctx)     // a spare, or a dial
//	if err != nil {
//		return err
//	}
//	defer l.Discard()        // does nothing after Put
//	use(l.Conn)
//	l.Put()                  // if it is fit to serve anybody
//
// # The cap
//
// Spares are not load, and never in the way of a session: a session leases a slot as if there were none, and then takes a spare
// if there is one. Spares and sessions together stay within the cap all the same, because the slots that are counted are
// those of sessions and of the dials a pool has begun, a session dials only when there is no spare, and a pool begins
// a dial only while those slots and the spares leave room.
package pool
