package runtime

import (
	"slices"
	"testing"
)

func TestCommon(t *testing.T) {
	run := func(first, count int) pageRun { return pageRun{first, count} }
	all := func(runs ...pageRun) []pageRun { return runs }
	for name, c := range map[string]struct {
		needed [][]pageRun
		most   int
		want   []pageRun
	}{
		"nobody":                      {make([][]pageRun, 3), 10, nil},
		"one":                         {[][]pageRun{all(run(2, 2), run(7, 1)), nil}, 10, all(run(2, 2), run(7, 1))},
		"all fit":                     {[][]pageRun{all(run(2, 2)), all(run(3, 3), run(9, 1))}, 10, all(run(2, 4), run(9, 1))},
		"what one needs does not fit": {[][]pageRun{all(run(2, 2)), all(run(3, 3), run(9, 1))}, 3, all(run(3, 1))},
		"what both need does not fit": {[][]pageRun{all(run(2, 4)), all(run(2, 4), run(9, 1))}, 3, all(run(2, 3))},
		"most come first": {[][]pageRun{all(run(0, 9)), all(run(4, 2)), all(run(5, 1), run(8, 1))}, 3,
			all(run(4, 2), run(8, 1))},
	} {
		if got := common(c.needed, c.most); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
