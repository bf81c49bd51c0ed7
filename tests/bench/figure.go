package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Figure is memory over time, as README shows it: nothing to do, one Deployment, many at once, all deleted, nothing to
// do.
type Figure struct {
	Seconds float64   `json:"seconds"` // that it shows
	Lines   []Line    `json:"lines"`
	Wakes   []float64 `json:"wakes"` // when a guest woke, in seconds from the start
	Happens []Happens `json:"happens"`
}

// Line is the anonymous memory of a server.
type Line struct {
	Mode   string  `json:"mode"`
	Points []Point `json:"points"`
}

// Point is one look, At seconds from the start.
type Point struct {
	At    float64 `json:"at"`
	Bytes int64   `json:"bytes"`
}

// Happens is something that was done to the servers.
type Happens struct {
	At   float64 `json:"at"`
	What string  `json:"what"`
}

const (
	// figurePoints is how many looks a line consists of, so that the file stays small; no more than one a second.
	figurePoints = 300
	// figureBurst is how many Deployments are created at once.
	figureBurst = 20
)

// figure measures memory over time.
func (b *bench) figure(ctx context.Context) error {
	servers, stop, err := b.startServers(ctx, "figure", wasm, native, bare)
	if err != nil {
		return err
	}
	return errors.Join(b.measureFigure(ctx, servers), stop())
}

func (b *bench) measureFigure(ctx context.Context, servers []*server) error {
	for _, s := range servers {
		if err := s.prepare(ctx); err != nil {
			return err
		}
	}
	b.say("figure: memory over %s", b.Figure)
	f := &Figure{Seconds: b.Figure.Seconds()}
	watch, err := newWakeWatch(ctx, servers[0])
	if err != nil {
		return err
	}
	began := time.Now()
	played := make(chan error, 1)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() { played <- b.play(ctx, f, began, servers[:2]) }()
	for _, s := range servers {
		f.Lines = append(f.Lines, Line{Mode: s.mode.name})
	}
	every := max(time.Second, b.Figure/figurePoints)
	for k := time.Duration(0); k*every <= b.Figure; k++ {
		if err := pause(ctx, time.Until(began.Add(k*every))); err != nil {
			return errors.Join(err, <-played)
		}
		for n, s := range servers {
			m, err := memoryOf(s.pids())
			if err != nil {
				cancel()
				return errors.Join(err, <-played)
			}
			f.Lines[n].Points = append(f.Lines[n].Points, Point{time.Since(began).Seconds(), m.Anonymous})
		}
		if err := watch.look(ctx); err != nil {
			cancel()
			return errors.Join(err, <-played)
		}
	}
	if err := <-played; err != nil {
		return err
	}
	for _, g := range watch.guests {
		for _, w := range g.IdleWakes {
			if at := w.At.Sub(began).Seconds(); at >= 0 && at <= f.Seconds {
				f.Wakes = append(f.Wakes, at)
			}
		}
	}
	b.report.Figure = f
	return nil
}

// play does to the servers what the figure shows, to all at the same time.
func (b *bench) play(ctx context.Context, f *Figure, began time.Time, servers []*server) error {
	const one, many = "one", "many"
	rollout := func(value string, n int) func(*server) error {
		return func(s *server) error {
			_, err := s.rollout(ctx, value, n)
			return err
		}
	}
	clear := func(s *server) error { return errors.Join(s.clear(ctx, one), s.clear(ctx, many)) }
	for _, step := range []struct {
		at   float64 // part of the time
		what string
		do   func(*server) error
	}{
		{0.2, "1 Deployment", rollout(one, 1)},
		{0.4, fmt.Sprintf("%d more", figureBurst), rollout(many, figureBurst)},
		{0.6, "all deleted", clear},
	} {
		if err := pause(ctx, time.Until(began.Add(time.Duration(step.at*float64(b.Figure))))); err != nil {
			return err
		}
		f.Happens = append(f.Happens, Happens{time.Since(began).Seconds(), step.what})
		done := make(chan error, len(servers))
		for _, s := range servers {
			go func() { done <- step.do(s) }()
		}
		var errs []error
		for range servers {
			errs = append(errs, <-done)
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
	}
	return nil
}
