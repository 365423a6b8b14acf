package worker

// A lane is instances in the order they came in, of which the first and any one it
// has are found and taken out without looking at the others: what is done for one
// invocation must not depend on how many environments there are. Every lane has its
// own place in the instance, which tells whether it is in it.
type lane struct {
	place       func(*instance) *place
	first, last *instance
	n           int
}

type place struct {
	in         bool
	prev, next *instance
}

// push puts an instance last, unless it is in the lane.
func (l *lane) push(i *instance) {
	p := l.place(i)
	if p.in {
		return
	}
	*p = place{in: true, prev: l.last}
	if l.last != nil {
		l.place(l.last).next = i
	} else {
		l.first = i
	}
	l.last = i
	l.n++
}

// remove takes an instance out, if it is in the lane.
func (l *lane) remove(i *instance) {
	p := l.place(i)
	if !p.in {
		return
	}
	if p.prev != nil {
		l.place(p.prev).next = p.next
	} else {
		l.first = p.next
	}
	if p.next != nil {
		l.place(p.next).prev = p.prev
	} else {
		l.last = p.prev
	}
	*p = place{}
	l.n--
}

// next is the one behind an instance of the lane.
func (l *lane) next(i *instance) *instance { return l.place(i).next }
