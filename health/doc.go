// Package health decides which backends are up.
//
// A [Checker] watches the backends of one group. It probes them, counts how the dials of sessions went, and sets each
// backend up or down when enough consecutive results say so:
//
//	checker := health.New(health.Config{
//		Group:    "db",
//		Prober:   health.TCP{},
//		Interval: 2 * time.Second,
//		Rule:     health.Rule{Rise: 2, Fall: 3, Failures: 3, HoldBase: time.Second, HoldMax: time.Minute},
//	})
//	watch := checker.Add(backend)      // calls backend.SetUp at every change
//	go checker.Run(ctx)                // probes until ctx is done
//	watch.Report(err)                  // after each dial of a session; nil if it connected
//
// The decision itself is a [Rule], a pure function of a [State] and a result, the same for probes and for dials.
//
// # Flapping
//
// A backend that goes down within HoldMax of having come up is flapping: it stays down for HoldBase at least, then twice that, up
// to HoldMax, however well its probes go. Hold-down protects clients who could be served elsewhere; so it is not waited for while
// no other backend of the group is up.
//
// # No probes
//
// With a nil Prober only failed dials take a backend down, and nothing would bring it up. So it comes back on trial: after
// HoldBase sessions may dial it again; one more failed dial takes it down for twice as long, a dial that connects makes it
// like any other. If it is the only one, it is tried every HoldBase.
//
// # Whose fault
//
// An error that says something about this machine, see [Local], never counts against a backend, neither in a probe nor in
// a dial.
package health
