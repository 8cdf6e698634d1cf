package backend_test

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/tproxy/tproxy/backend"
)

func Example() {
	small, err := backend.New(backend.Config{Name: "small", Address: "10.0.0.1:5432", Weight: 1, MaxConnections: 100})
	if err != nil {
		fmt.Println(err)
		return
	}
	large, err := backend.New(backend.Config{Name: "large", Address: "10.0.0.2:5432", Weight: 2, MaxConnections: 200})
	if err != nil {
		fmt.Println(err)
		return
	}
	group, err := backend.NewGroup(backend.GroupConfig{
		Name:     "db",
		Balance:  backend.RoundRobin,
		Backends: []*backend.Backend{small, large},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer group.Close()

	client := netip.MustParseAddr("192.0.2.1")
	for range 3 {
		lease, err := group.Lease(backend.Key(client), nil)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println(lease.Backend().Name(), lease.Backend().Address())
		lease.Release()
	}
	// Output:
	// large 10.0.0.2:5432
	// small 10.0.0.1:5432
	// large 10.0.0.2:5432
}

// A session that could not connect asks again and says whom it tried.
func ExampleGroup_Lease_retry() {
	first, _ := backend.New(backend.Config{Name: "first", Address: "10.0.0.1:80", Weight: 1})
	second, _ := backend.New(backend.Config{Name: "second", Address: "10.0.0.2:80", Weight: 1, Tier: 1})
	group, _ := backend.NewGroup(backend.GroupConfig{Name: "web", Backends: []*backend.Backend{first, second}})
	defer group.Close()

	var tried []*backend.Backend
	for range 2 {
		lease, err := group.Lease(0, tried)
		if err != nil {
			fmt.Println(err)
			return
		}
		fmt.Println("trying", lease.Backend())
		tried = append(tried, lease.Backend())
		lease.Release() // the connect failed
	}
	// Output:
	// trying first
	// trying second
}

func ExampleGroup_OnFreed() {
	only, _ := backend.New(backend.Config{Name: "only", Address: "10.0.0.1:80", Weight: 1, MaxConnections: 1})
	group, _ := backend.NewGroup(backend.GroupConfig{Name: "web", Backends: []*backend.Backend{only}})
	defer group.Close()

	lease, _ := group.Lease(0, nil)
	_, err := group.Lease(0, nil)
	fmt.Println(err, errors.Is(err, backend.ErrFull))

	group.OnFreed(func() { fmt.Println("try again") })
	lease.Release()
	// Output:
	// group web: every usable backend is at max_connections true
	// try again
}

func ExampleBackend_SetState() {
	a, _ := backend.New(backend.Config{Name: "a", Address: "10.0.0.1:80", Weight: 1})
	group, _ := backend.NewGroup(backend.GroupConfig{Name: "web", Backends: []*backend.Backend{a}})
	defer group.Close()

	a.SetState(backend.Drain)
	_, err := group.Lease(0, nil)
	fmt.Println(a.State(), group.Usable(), err)
	// Output: drain 0 group web: no usable backend
}
