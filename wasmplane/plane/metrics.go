package plane

import "github.com/prometheus/client_golang/prometheus"

// metrics are the plane's, for the API server's /metrics.
type metrics struct {
	wakes        *prometheus.CounterVec
	wakeSeconds  *prometheus.HistogramVec
	saveSeconds  prometheus.Histogram
	written      prometheus.Counter
	restarts     *prometheus.CounterVec
	snapshotDesc *prometheus.Desc
	residentDesc *prometheus.Desc
	cpuDesc      *prometheus.Desc
	stateDesc    *prometheus.Desc
	watchesDesc  *prometheus.Desc
}

func newMetrics() *metrics {
	latency := []float64{.0005, .001, .0015, .002, .0025, .003, .0035, .004, .005, .006, .007, .008, .009, .01, .012, .015, .02, .025, .035, .05, .1, .25, 1}
	return &metrics{
		wakes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dormouse_wasm_wakes_total",
			Help: "How often a controller was brought back into memory, by controller and class of reason (event, timer, start, command).",
		}, []string{"controller", "reason"}),
		wakeSeconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "dormouse_wasm_wake_seconds",
			Help:    "Time from an event that reaches a sleeping controller until the controller runs, by controller.",
			Buckets: latency,
		}, []string{"controller"}),
		saveSeconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "dormouse_wasm_save_seconds",
			Help:    "Time to save the snapshot of a controller, with the wait for the disk.",
			Buckets: latency,
		}),
		written: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "dormouse_wasm_snapshot_written_bytes_total",
			Help: "Bytes given to the snapshot database.",
		}),
		restarts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "dormouse_wasm_restarts_total",
			Help: "How often a controller was ended and started again cold, by controller and reason.",
		}, []string{"controller", "reason"}),
		snapshotDesc: prometheus.NewDesc("dormouse_wasm_snapshot_bytes",
			"Size of a controller's snapshot on disk.", []string{"controller"}, nil),
		residentDesc: prometheus.NewDesc("dormouse_wasm_resident_bytes",
			"Memory of its own that a controller holds; 0 while it sleeps.", []string{"controller"}, nil),
		cpuDesc: prometheus.NewDesc("dormouse_wasm_cpu_seconds_total",
			"Processor time that a controller has used, with what the plane did for it meanwhile.", []string{"controller"}, nil),
		stateDesc: prometheus.NewDesc("dormouse_wasm_state",
			"1 for the state a controller is in.", []string{"controller", "state"}, nil),
		watchesDesc: prometheus.NewDesc("dormouse_wasm_watches",
			"Open watches in the API server, which controllers share; where nothing happens there are none.", nil, nil),
	}
}

// Describe implements prometheus.Collector.
func (p *Plane) Describe(ch chan<- *prometheus.Desc) {
	m := p.metrics
	m.wakes.Describe(ch)
	m.wakeSeconds.Describe(ch)
	m.saveSeconds.Describe(ch)
	m.written.Describe(ch)
	m.restarts.Describe(ch)
	ch <- m.snapshotDesc
	ch <- m.residentDesc
	ch <- m.cpuDesc
	ch <- m.stateDesc
	ch <- m.watchesDesc
}

// Collect implements prometheus.Collector.
func (p *Plane) Collect(ch chan<- prometheus.Metric) {
	m := p.metrics
	m.wakes.Collect(ch)
	m.wakeSeconds.Collect(ch)
	m.saveSeconds.Collect(ch)
	m.written.Collect(ch)
	m.restarts.Collect(ch)
	ch <- prometheus.MustNewConstMetric(m.watchesDesc, prometheus.GaugeValue, float64(p.feeds.count()))
	for _, g := range p.guests {
		s := g.status()
		ch <- prometheus.MustNewConstMetric(m.snapshotDesc, prometheus.GaugeValue, float64(s.SnapshotBytes), s.Name)
		ch <- prometheus.MustNewConstMetric(m.residentDesc, prometheus.GaugeValue, float64(s.ResidentBytes), s.Name)
		ch <- prometheus.MustNewConstMetric(m.cpuDesc, prometheus.CounterValue, s.CPUSeconds, s.Name)
		ch <- prometheus.MustNewConstMetric(m.stateDesc, prometheus.GaugeValue, 1, s.Name, string(s.State))
	}
}
