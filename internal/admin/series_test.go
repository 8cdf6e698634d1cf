package admin

import (
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
)

func TestNamesThatComeAndGoAreBoundedAndSumsStayRight(t *testing.T) {
	var s series[string, atomic.Uint64]
	const n = shards*maxSeries + 10_000
	var wg sync.WaitGroup
	for w := range 2 {
		wg.Go(func() {
			for i := range n {
				s.at(strconv.Itoa((i + w*n/2) % n)).Add(1) // both add the same names, at different times
			}
		})
	}
	wg.Wait()
	var sum, count uint64
	s.each(func(_ string, v *atomic.Uint64) { sum, count = sum+v.Load(), count+1 })
	if sum != 2*n || count > shards*maxSeries+1 {
		t.Errorf("counted %d of %d under %d names", sum, 2*n, count)
	}
	if s.at("").Load() == 0 {
		t.Error("nothing was counted together")
	}
}
