package main

import (
	"bytes"
	"fmt"
	"html"
	"math"
	"slices"
	"strings"
)

// Layout of the figure, in units of its own. What is drawn lies within the margins.
const (
	svgWidth, svgHeight = 860, 380
	svgLeft, svgRight   = 64, 144
	svgTop, svgBottom   = 56, 76
	svgRug              = 12 // height of a wake's mark, below the axis
	svgLabelGap         = 15 // least distance of two labels, from line to line
)

// Colours that can be read on white and on black.
const (
	svgText = "#768390"
	svgFont = `font-family="system-ui,sans-serif" font-size="12"`
)

var svgLines = map[string]struct{ colour, dash, label string }{
	wasm.name:   {"#2f81f7", "", "asleep in Wasm"},
	native.name: {"#d9822b", "", "native"},
	bare.name:   {svgText, "4 4", "no controllers"},
}

// ticks are at most about n round numbers from 0 on that cover most.
func ticks(most float64, n int) []float64 {
	if most <= 0 {
		return []float64{0, 1}
	}
	step := math.Pow(10, math.Floor(math.Log10(most/float64(n))))
	for _, factor := range []float64{1, 2, 5, 10} {
		if most/(factor*step) <= float64(n) {
			step *= factor
			break
		}
	}
	all := []float64{0}
	for all[len(all)-1] < most {
		all = append(all, float64(len(all))*step)
	}
	return all
}

// svg draws the figure.
func (f *Figure) svg() []byte {
	highest := int64(0)
	for _, l := range f.Lines {
		for _, p := range l.Points {
			highest = max(highest, p.Bytes)
		}
	}
	levels := ticks(float64(highest)/(1<<20), 6)
	top := levels[len(levels)-1]
	bottom := float64(svgHeight - svgBottom)
	x := func(seconds float64) float64 {
		return svgLeft + (svgWidth-svgLeft-svgRight)*min(seconds/f.Seconds, 1)
	}
	y := func(mebibytes float64) float64 { return bottom - (bottom-svgTop)*mebibytes/top }

	var b bytes.Buffer
	text := func(x, y float64, anchor, more, content string) {
		fmt.Fprintf(&b, "<text x=\"%.1f\" y=\"%.1f\" text-anchor=\"%s\" %s>%s</text>\n", x, y, anchor, more, html.EscapeString(content))
	}
	line := func(x1, y1, x2, y2 float64, more string) {
		fmt.Fprintf(&b, "<line x1=\"%.1f\" y1=\"%.1f\" x2=\"%.1f\" y2=\"%.1f\" %s/>\n", x1, y1, x2, y2, more)
	}
	fmt.Fprintf(&b, "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %d\" role=\"img\" %s fill=\"%s\">\n", svgWidth, svgHeight, svgFont, svgText)
	b.WriteString("<title>Anonymous memory of a server over time, controllers asleep in Wasm against native</title>\n")
	text(svgLeft, 20, "start", `font-size="14" font-weight="600"`, "Anonymous memory of the server, MiB")

	for _, level := range levels {
		line(svgLeft, y(level), svgWidth-svgRight, y(level), fmt.Sprintf(`stroke="%s" stroke-opacity="0.25"`, svgText))
		text(svgLeft-8, y(level)+4, "end", "", fmt.Sprint(level))
	}
	unit, name := 1.0, "seconds"
	if f.Seconds > 180 {
		unit, name = 60, "minutes"
	}
	for _, at := range ticks(f.Seconds/unit, 10) {
		if at*unit <= f.Seconds {
			text(x(at*unit), bottom+svgRug+22, "middle", "", fmt.Sprint(at))
		}
	}
	text((svgLeft+svgWidth-svgRight)/2, svgHeight-16, "middle", "", name)

	for _, h := range f.Happens {
		line(x(h.At), svgTop-8, x(h.At), bottom, fmt.Sprintf(`stroke="%s" stroke-opacity="0.6" stroke-dasharray="1 3"`, svgText))
		text(x(h.At), svgTop-12, "middle", "", h.What)
	}

	rug := svgLines[wasm.name].colour
	for _, at := range f.Wakes {
		line(x(at), bottom+4, x(at), bottom+4+svgRug, fmt.Sprintf(`stroke="%s" stroke-opacity="0.5"`, rug))
	}
	text(svgWidth-svgRight+8, bottom+4+svgRug, "start", fmt.Sprintf(`fill="%s"`, rug), fmt.Sprintf("%d wakes", len(f.Wakes)))

	// The highest line first, so that labels can be moved down where they would overlap.
	lines := slices.Clone(f.Lines)
	last := func(l Line) float64 { return float64(l.Points[len(l.Points)-1].Bytes) / (1 << 20) }
	lines = slices.DeleteFunc(lines, func(l Line) bool { return len(l.Points) == 0 })
	slices.SortStableFunc(lines, func(a, b Line) int { return int(math.Copysign(1, last(b)-last(a))) })
	label := math.Inf(-1)
	for _, l := range lines {
		style := svgLines[l.Mode]
		points := make([]string, len(l.Points))
		for k, p := range l.Points {
			points[k] = fmt.Sprintf("%.1f,%.1f", x(p.At), y(float64(p.Bytes)/(1<<20)))
		}
		dash := ""
		if style.dash != "" {
			dash = fmt.Sprintf(` stroke-dasharray="%s"`, style.dash)
		}
		fmt.Fprintf(&b, "<polyline points=\"%s\" fill=\"none\" stroke=\"%s\" stroke-width=\"1.8\" stroke-linejoin=\"round\"%s/>\n", strings.Join(points, " "), style.colour, dash)
		label = max(label+svgLabelGap, y(last(l))+4)
		text(svgWidth-svgRight+8, label, "start", fmt.Sprintf(`fill="%s"`, style.colour), fmt.Sprintf("%s %.0f", style.label, last(l)))
	}
	b.WriteString("</svg>\n")
	return b.Bytes()
}
