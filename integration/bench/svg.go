package main

import (
	"fmt"
	"html"
	"math"
	"strconv"
	"strings"
)

// A chart is one panel of a picture: bars or curves.
type chart struct {
	title  string
	unit   string  // of the values
	bars   []bar   // from top to bottom
	target float64 // a line across the bars; 0: none

	x      string // what the curves go over
	curves []curve
}

// A bar is one value with what it ranges over.
type bar struct {
	kind             kind
	name             string
	value, low, high float64 // low = high: no range
}

// A curve is one line through points, from left to right. Both axes are logarithmic.
type curve struct {
	kind   kind
	name   string
	dashed bool
	points []point
}

type point struct{ x, y float64 }

// A kind says whose a value is, which shows in its colour.
type kind int

const (
	ofFloor kind = iota
	ofLambdad
	ofEmulator
	ofOther
)

var colours = [...]string{ofFloor: "#8c959f", ofLambdad: "#0969da", ofEmulator: "#d4770b", ofOther: "#8250df"}

func kindOf(name string) kind {
	switch {
	case strings.HasPrefix(name, "floor"):
		return ofFloor
	case strings.HasPrefix(name, "AWS"):
		return ofEmulator
	case strings.HasPrefix(name, "against"):
		return ofOther
	}
	return ofLambdad
}

const (
	svgWidth   = 900.0
	labelWidth = 330.0
	barHeight  = 20.0
	panelWidth = 440.0
	plotHeight = 190.0
)

// An svg is a picture in the making.
type svg struct {
	b strings.Builder
	y float64 // what is used of the height
}

func (s *svg) add(format string, v ...any) { fmt.Fprintf(&s.b, format+"\n", v...) }

func (s *svg) text(x, y float64, anchor, class, format string, v ...any) {
	s.add(`<text x="%.1f" y="%.1f" text-anchor="%s" class="%s">%s</text>`, x, y, anchor, class, html.EscapeString(fmt.Sprintf(format, v...)))
}

func (s *svg) line(x1, y1, x2, y2 float64, colour string, dashed bool) {
	s.add(`<line x1="%.1f" y1="%.1f" x2="%.1f" y2="%.1f" stroke="%s"%s/>`, x1, y1, x2, y2, colour, dash(dashed))
}

func dash(yes bool) string {
	if yes {
		return ` stroke-dasharray="5 3"`
	}
	return ""
}

// picture draws charts below each other, curves two in a row.
func picture(caption string, charts []chart) string {
	s := &svg{y: 30}
	s.text(10, 20, "start", "t", "%s", caption)
	column := 0
	for i, c := range charts {
		if len(c.bars) > 0 {
			s.drawBars(c)
			continue
		}
		s.drawCurves(c, float64(column)*panelWidth+10)
		column = 1 - column
		if column == 0 || i == len(charts)-1 || len(charts[i+1].bars) > 0 {
			column = 0
			s.y += plotHeight + 110
		}
	}
	return fmt.Sprintf(`<svg xmlns="http://www.w3.org/2000/svg" width="%.0f" height="%.0f" viewBox="0 0 %[1]g %.0[2]f" font-family="sans-serif">
<style>text{font-size:12px;fill:#1f2328}.t{font-size:14px;font-weight:bold}.s{font-size:11px;fill:#57606a}</style>
<rect width="100%%" height="100%%" fill="#fff"/>
%s</svg>
`, svgWidth, s.y+10, s.b.String())
}

func (s *svg) drawBars(c chart) {
	most := c.target
	for _, b := range c.bars {
		most = max(most, b.value, b.high)
	}
	scale := (svgWidth - labelWidth - 90) / (most * 1.02)
	s.text(10, s.y+20, "start", "t", "%s", c.title)
	s.y += 30
	top := s.y
	for _, b := range c.bars {
		middle := s.y + barHeight/2
		s.text(labelWidth-8, middle+4, "end", "", "%s", b.name)
		s.add(`<rect x="%.1f" y="%.1f" width="%.1f" height="%.1f" fill="%s"/>`, labelWidth, s.y+3, b.value*scale, barHeight-6, colours[b.kind])
		end := max(b.value, b.high) * scale
		if b.low < b.high {
			s.line(labelWidth+b.low*scale, middle, labelWidth+b.high*scale, middle, "#1f2328", false)
			for _, x := range []float64{b.low, b.high} {
				s.line(labelWidth+x*scale, middle-4, labelWidth+x*scale, middle+4, "#1f2328", false)
			}
		}
		s.text(labelWidth+end+6, middle+4, "start", "s", "%s %s", short(b.value), c.unit)
		s.y += barHeight
	}
	if c.target > 0 {
		x := labelWidth + c.target*scale
		s.line(x, top, x, s.y, "#cf222e", true)
		s.text(x, s.y+12, "middle", "s", "target %s %s", short(c.target), c.unit)
	}
	s.y += 30
}

// An axis is logarithmic and begins and ends with a power of ten, or with the half or
// a fifth of one.
type axis struct{ low, high, from, to float64 }

func newAxis(values []float64, from, to float64) axis {
	a := axis{math.Inf(1), 0, from, to}
	for _, v := range values {
		if v > 0 {
			a.low, a.high = min(a.low, v), max(a.high, v)
		}
	}
	if a.high == 0 {
		a.low, a.high = 1, 10
	}
	a.low, a.high = roundDown(a.low), roundUp(a.high)
	if a.low == a.high {
		a.high = roundUp(a.low * 1.1)
	}
	return a
}

func (a axis) at(v float64) float64 {
	return a.from + (a.to-a.from)*math.Log(max(v, a.low)/a.low)/math.Log(a.high/a.low)
}

// ticks are the numbers an axis shows.
func (a axis) ticks() []float64 {
	var all, tens []float64
	for v := a.low; v <= a.high*1.001; v = roundUp(v * 1.1) {
		all = append(all, v)
		if l := math.Log10(v); math.Abs(l-math.Round(l)) < 1e-9 {
			tens = append(tens, v)
		}
	}
	if len(all) > 7 {
		return tens
	}
	return all
}

// roundUp is the least of 1, 2 or 5 times a power of ten that is not below v.
func roundUp(v float64) float64 {
	ten := math.Pow(10, math.Floor(math.Log10(v)+1e-9))
	for _, m := range []float64{1, 2, 5, 10} {
		if ten*m >= v*(1-1e-9) {
			return ten * m
		}
	}
	return ten * 10
}

func roundDown(v float64) float64 {
	ten := math.Pow(10, math.Floor(math.Log10(v)+1e-9))
	for _, m := range []float64{5, 2} {
		if ten*m <= v*(1+1e-9) {
			return ten * m
		}
	}
	return ten
}

func (s *svg) drawCurves(c chart, left float64) {
	var xs, ys []float64
	for _, l := range c.curves {
		for _, p := range l.points {
			xs, ys = append(xs, p.x), append(ys, p.y)
		}
	}
	top, bottom := s.y+35, s.y+35+plotHeight
	x, y := newAxis(xs, left+55, left+panelWidth-20), newAxis(ys, bottom, top)
	s.text(left, s.y+20, "start", "t", "%s, %s", c.title, c.unit)
	for _, v := range x.ticks() {
		s.line(x.at(v), top, x.at(v), bottom, "#d0d7de", false)
		s.text(x.at(v), bottom+14, "middle", "s", "%s", short(v))
	}
	for _, v := range y.ticks() {
		s.line(x.from, y.at(v), x.to, y.at(v), "#d0d7de", false)
		s.text(x.from-5, y.at(v)+4, "end", "s", "%s", short(v))
	}
	s.text(x.to, bottom+28, "end", "s", "%s", c.x)
	for i, l := range c.curves {
		var path []string
		for _, p := range l.points {
			path = append(path, fmt.Sprintf("%.1f,%.1f", x.at(p.x), y.at(p.y)))
			s.add(`<circle cx="%.1f" cy="%.1f" r="2.5" fill="%s"/>`, x.at(p.x), y.at(p.y), colours[l.kind])
		}
		s.add(`<polyline points="%s" fill="none" stroke="%s" stroke-width="1.5"%s/>`, strings.Join(path, " "), colours[l.kind], dash(l.dashed))
		// The legend, two names in a row.
		lx, ly := left+55+float64(i%2)*185, bottom+44+float64(i/2)*15
		s.line(lx, ly-4, lx+22, ly-4, colours[l.kind], l.dashed)
		s.text(lx+27, ly, "start", "s", "%s", l.name)
	}
}

// short writes a number with three digits that count.
func short(v float64) string {
	number := func(v float64, unit string) string { return strconv.FormatFloat(three(v), 'f', -1, 64) + unit }
	switch {
	case v >= 1e6:
		return number(v/1e6, "M")
	case v >= 1e4:
		return number(v/1e3, "k")
	}
	return number(v, "")
}

func three(v float64) float64 {
	if v == 0 {
		return 0
	}
	m := math.Pow(10, 2-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*m) / m
}
