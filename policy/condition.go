package policy

import (
	"bytes"
	"encoding/base64"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A condition is one key of one operator of a Condition element.
type condition struct {
	operator string // without qualifier and IfExists
	set      setOperator
	ifExists bool
	key      string // in lower case
	values   []operand
	compare  func(have string, want *operand, keys Keys) bool
	negated  bool
}

type setOperator int

const (
	single setOperator = iota
	forAll
	forAny
)

// An operand is a value of a policy, parsed for its operator.
type operand struct {
	text   string
	vars   bool
	pat    pattern
	arn    [6]pattern
	num    float64
	at     time.Time
	prefix netip.Prefix
	raw    []byte
	bad    bool // not of the operator's type: matches nothing
}

// An operatorInfo is what there is to know of an operator.
type operatorInfo struct {
	name    string
	negated bool
	parse   func(o *operand, variables bool)
	compare func(have string, want *operand, keys Keys) bool
}

// operators by name in lower case.
var operators = func() map[string]operatorInfo {
	list := []operatorInfo{
		{"StringEquals", false, parseText, equals},
		{"StringNotEquals", true, parseText, equals},
		{"StringEqualsIgnoreCase", false, parseText, equalsFold},
		{"StringNotEqualsIgnoreCase", true, parseText, equalsFold},
		{"StringLike", false, parsePattern, like},
		{"StringNotLike", true, parsePattern, like},
		{"NumericEquals", false, parseNumber, number(func(a, b float64) bool { return a == b })},
		{"NumericNotEquals", true, parseNumber, number(func(a, b float64) bool { return a == b })},
		{"NumericLessThan", false, parseNumber, number(func(a, b float64) bool { return a < b })},
		{"NumericLessThanEquals", false, parseNumber, number(func(a, b float64) bool { return a <= b })},
		{"NumericGreaterThan", false, parseNumber, number(func(a, b float64) bool { return a > b })},
		{"NumericGreaterThanEquals", false, parseNumber, number(func(a, b float64) bool { return a >= b })},
		{"DateEquals", false, parseDate, date(func(c int) bool { return c == 0 })},
		{"DateNotEquals", true, parseDate, date(func(c int) bool { return c == 0 })},
		{"DateLessThan", false, parseDate, date(func(c int) bool { return c < 0 })},
		{"DateLessThanEquals", false, parseDate, date(func(c int) bool { return c <= 0 })},
		{"DateGreaterThan", false, parseDate, date(func(c int) bool { return c > 0 })},
		{"DateGreaterThanEquals", false, parseDate, date(func(c int) bool { return c >= 0 })},
		{"Bool", false, parseText, equalsFold},
		{"BinaryEquals", false, parseBinary, binary},
		{"IpAddress", false, parseAddress, address},
		{"NotIpAddress", true, parseAddress, address},
		{"ArnEquals", false, parseARN, arnLike},
		{"ArnNotEquals", true, parseARN, arnLike},
		{"ArnLike", false, parseARN, arnLike},
		{"ArnNotLike", true, parseARN, arnLike},
		{"Null", false, parseText, nil},
	}
	m := make(map[string]operatorInfo, len(list))
	for _, o := range list {
		m[strings.ToLower(o.name)] = o
	}
	return m
}()

// newCondition compiles one key of an operator; ok is false if there is no such
// operator.
func newCondition(name, key string, values []string, variables bool) (c condition, ok bool) {
	rest := name
	if q, op, found := strings.Cut(name, ":"); found {
		switch lower(q) {
		case "forallvalues":
			c.set = forAll
		case "foranyvalue":
			c.set = forAny
		default:
			return c, false
		}
		rest = op
	}
	base := lower(rest)
	if b, found := strings.CutSuffix(base, "ifexists"); found {
		base, c.ifExists = b, true
	}
	info, ok := operators[base]
	if !ok || base == "null" && (c.ifExists || c.set != single) {
		return c, false
	}
	c.operator, c.compare, c.negated, c.key = info.name, info.compare, info.negated, lower(key)
	for _, v := range values {
		o := operand{text: v, vars: variables && strings.Contains(v, "${")}
		info.parse(&o, variables)
		c.values = append(c.values, o)
	}
	return c, true
}

// holds reports whether the condition is met; known is false if its key is not
// understood.
func (c *condition) holds(keys Keys) (holds, known bool) {
	var have []string
	if keys != nil {
		have, known = keys.Values(c.key)
	}
	if !known {
		return false, false
	}
	if c.operator == "Null" {
		absent := "false"
		if len(have) == 0 {
			absent = "true"
		}
		return slices.ContainsFunc(c.values, func(o operand) bool { return strings.EqualFold(o.text, absent) }), true
	}
	if len(have) == 0 {
		switch {
		case c.ifExists, c.set == forAll:
			return true, true
		case c.set == forAny:
			return false, true
		}
		return c.negated, true
	}
	if c.negated {
		// A variable without a value is unlike everything, but that is no
		// reason to allow.
		for i := range c.values {
			if _, ok := c.values[i].literal(keys); !ok {
				return false, false
			}
		}
	}
	switch c.set {
	case forAll:
		for _, h := range have {
			if c.meets(h, keys) == c.negated {
				return false, true
			}
		}
		return true, true
	case forAny:
		for _, h := range have {
			if c.meets(h, keys) != c.negated {
				return true, true
			}
		}
		return false, true
	}
	for _, h := range have {
		if c.meets(h, keys) {
			return !c.negated, true
		}
	}
	return c.negated, true
}

// meets reports whether one value of the request equals, or is like, one of the
// policy's.
func (c *condition) meets(have string, keys Keys) bool {
	for i := range c.values {
		if o := &c.values[i]; !o.bad && c.compare(have, o, keys) {
			return true
		}
	}
	return false
}

func parseText(*operand, bool) {}

// literal is an operand with its variables replaced.
func (o *operand) literal(keys Keys) (string, bool) {
	if !o.vars {
		return o.text, true
	}
	return resolve(o.text, keys, false)
}

func equals(have string, want *operand, keys Keys) bool {
	text, ok := want.literal(keys)
	return ok && have == text
}

func equalsFold(have string, want *operand, keys Keys) bool {
	text, ok := want.literal(keys)
	return ok && strings.EqualFold(have, text)
}

func parsePattern(o *operand, variables bool) { o.pat = newPattern(o.text, variables) }

func like(have string, want *operand, keys Keys) bool {
	ok, _ := want.pat.matchVar(have, keys)
	return ok
}

func parseNumber(o *operand, _ bool) {
	var err error
	o.num, err = strconv.ParseFloat(strings.TrimSpace(o.text), 64)
	o.bad = err != nil
}

func number(test func(have, want float64) bool) func(string, *operand, Keys) bool {
	return func(have string, want *operand, _ Keys) bool {
		n, err := strconv.ParseFloat(have, 64)
		return err == nil && test(n, want.num)
	}
}

// dateForms are the forms of ISO 8601 that W3C's note names.
var dateForms = []string{
	time.RFC3339Nano, "2006-01-02T15:04Z07:00", "2006-01-02T15:04:05", "2006-01-02", "2006-01", "2006",
}

// parseTime reads a date: ISO 8601 or seconds since 1970.
func parseTime(s string) (time.Time, bool) {
	if len(s) > 4 {
		if n, err := strconv.ParseFloat(s, 64); err == nil && n > -1e11 && n < 1e11 {
			return time.UnixMilli(int64(n * 1000)), true
		}
	}
	for _, f := range dateForms {
		if t, err := time.Parse(f, s); err == nil {
			return t, true
		}
	}
	return time.Time{}, false
}

func parseDate(o *operand, _ bool) {
	at, ok := parseTime(o.text)
	o.at, o.bad = at, !ok
}

func date(test func(c int) bool) func(string, *operand, Keys) bool {
	return func(have string, want *operand, _ Keys) bool {
		at, ok := parseTime(have)
		return ok && test(at.Compare(want.at))
	}
}

func parseBinary(o *operand, _ bool) {
	b, err := base64.StdEncoding.DecodeString(o.text)
	o.raw, o.bad = b, err != nil
}

func binary(have string, want *operand, _ Keys) bool {
	b, err := base64.StdEncoding.DecodeString(have)
	return err == nil && bytes.Equal(b, want.raw)
}

func parseAddress(o *operand, _ bool) {
	p, err := netip.ParsePrefix(o.text)
	if err != nil {
		a, aerr := netip.ParseAddr(o.text)
		if o.bad = aerr != nil; o.bad {
			return
		}
		p = netip.PrefixFrom(a, a.BitLen())
	}
	o.prefix = p.Masked()
}

func address(have string, want *operand, _ Keys) bool {
	a, err := netip.ParseAddr(have)
	return err == nil && want.prefix.Contains(a.Unmap())
}

func parseARN(o *operand, variables bool) {
	parts := splitARN(o.text)
	if o.bad = len(parts) != 6; o.bad {
		if o.text == "*" { // as IAM takes it
			o.bad = false
			for i := range o.arn {
				o.arn[i] = newPattern("*", false)
			}
		}
		return
	}
	for i, p := range parts {
		o.arn[i] = newPattern(p, variables)
	}
}

// splitARN cuts an ARN into its six parts; colons within a variable are none of
// its own.
func splitARN(s string) []string {
	var parts []string
	begin, inside := 0, false
	for i := 0; i < len(s) && len(parts) < 5; i++ {
		switch {
		case strings.HasPrefix(s[i:], "${"):
			inside = true
		case s[i] == '}':
			inside = false
		case s[i] == ':' && !inside:
			parts = append(parts, s[begin:i])
			begin = i + 1
		}
	}
	return append(parts, s[begin:])
}

func arnLike(have string, want *operand, keys Keys) bool {
	parts := strings.SplitN(have, ":", 6)
	if len(parts) != 6 {
		return false
	}
	for i := range parts {
		if ok, _ := want.arn[i].matchVar(parts[i], keys); !ok {
			return false
		}
	}
	return true
}
