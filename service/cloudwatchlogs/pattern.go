package cloudwatchlogs

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// A Pattern is a filter pattern. It is one of
//
//	ERROR "a phrase" -DEBUG %reg.*ex%   all of them, in any order
//	?ERROR ?WARN                        at least one
//	{ $.level = "ERROR" && $.n > 3 }    of events that are JSON objects
//	[ip, ..., status = 4*, bytes > 10]  of events whose fields are separated by blanks
//
// and matches everything when it is empty.
type Pattern struct {
	terms    []term // all must hold
	optional []term // one must hold, if there are any and no terms
	json     jsonExpr
	fields   *fieldsPattern
}

// maxPatternDepth bounds parentheses.
const maxPatternDepth = 50

// ParsePattern reads a filter pattern.
func ParsePattern(s string) (*Pattern, error) {
	p := &patternParser{rest: strings.TrimSpace(s)}
	switch {
	case p.rest == "":
		return &Pattern{}, nil
	case p.rest[0] == '{':
		p.rest = p.rest[1:]
		e, err := p.jsonOr(0)
		if err == nil && !p.take("}") {
			err = p.unexpected("}")
		}
		if err == nil && p.rest != "" {
			err = p.unexpected("the end")
		}
		return &Pattern{json: e}, err
	case p.rest[0] == '[':
		f, err := p.parseFields()
		return &Pattern{fields: f}, err
	}
	return p.parseTerms()
}

// Match says whether an event's message matches.
func (p *Pattern) Match(message string) bool {
	switch {
	case p.json != nil:
		v, ok := parseJSON(message)
		return ok && p.json.match(v)
	case p.fields != nil:
		return p.fields.match(message) != nil
	}
	// Beside other terms, optional ones are ignored.
	if len(p.terms) == 0 && len(p.optional) > 0 {
		for _, t := range p.optional {
			if t.holds(message) {
				return true
			}
		}
		return false
	}
	for _, t := range p.terms {
		if t.holds(message) == t.exclude {
			return false
		}
	}
	return true
}

// Extract returns the values that a pattern names in a message that matches: by
// selector or by field; empty for terms.
func (p *Pattern) Extract(message string) map[string]string {
	values := map[string]string{}
	switch {
	case p.json != nil:
		if v, ok := parseJSON(message); ok {
			p.json.each(func(c *jsonCondition) {
				for _, x := range c.selector.find(v) {
					if s, ok := scalar(x); ok {
						values[c.selector.text] = s
					}
				}
			})
		}
	case p.fields != nil:
		for i, f := range p.fields.match(message) {
			values["$"+strconv.Itoa(i+1)] = f.value
			if f.name != "" {
				delete(values, "$"+strconv.Itoa(i+1))
				values["$"+f.name] = f.value
			}
		}
	}
	return values
}

type term struct {
	text    string
	re      *regexp.Regexp
	exclude bool
}

func (t term) holds(s string) bool {
	if t.re != nil {
		return t.re.MatchString(s)
	}
	return strings.Contains(s, t.text)
}

type patternParser struct{ rest string }

func (p *patternParser) space() { p.rest = strings.TrimLeft(p.rest, " \t\r\n") }

func (p *patternParser) take(token string) bool {
	p.space()
	rest, ok := strings.CutPrefix(p.rest, token)
	if ok {
		p.rest = rest
	}
	return ok
}

func (p *patternParser) unexpected(want string) error {
	at := p.rest
	if len(at) > 20 {
		at = at[:20]
	}
	if at == "" {
		return fmt.Errorf("expected %s at the end", want)
	}
	return fmt.Errorf("expected %s at %q", want, at)
}

// quoted reads what follows an opening quote; a backslash takes the next character
// as it is.
func (p *patternParser) quoted() (string, error) {
	var b strings.Builder
	for i := 0; i < len(p.rest); i++ {
		switch c := p.rest[i]; {
		case c == '\\' && i+1 < len(p.rest):
			i++
			if n := p.rest[i]; n != '"' && n != '\\' {
				b.WriteByte(c)
			}
			b.WriteByte(p.rest[i])
		case c == '"':
			p.rest = p.rest[i+1:]
			return b.String(), nil
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("a quote is not closed")
}

// regex reads what follows an opening percent sign.
func (p *patternParser) regex() (*regexp.Regexp, error) {
	for i := 0; i < len(p.rest); i++ {
		switch p.rest[i] {
		case '\\':
			i++
		case '%':
			text := p.rest[:i]
			p.rest = p.rest[i+1:]
			re, err := regexp.Compile(text)
			if err != nil {
				return nil, fmt.Errorf("the regular expression %%%s%% cannot be read", text)
			}
			return re, nil
		}
	}
	return nil, errors.New("a regular expression is not closed with %")
}

func (p *patternParser) parseTerms() (*Pattern, error) {
	out := &Pattern{}
	for {
		p.space()
		if p.rest == "" {
			return out, nil
		}
		var t term
		optional := false
		switch p.rest[0] {
		case '-':
			t.exclude = true
			p.rest = p.rest[1:]
		case '?':
			optional = true
			p.rest = p.rest[1:]
		}
		var err error
		switch {
		case strings.HasPrefix(p.rest, `"`):
			p.rest = p.rest[1:]
			t.text, err = p.quoted()
		case strings.HasPrefix(p.rest, "%"):
			p.rest = p.rest[1:]
			t.re, err = p.regex()
		default:
			n := strings.IndexAny(p.rest, " \t\r\n")
			if n < 0 {
				n = len(p.rest)
			}
			t.text, p.rest = p.rest[:n], p.rest[n:]
			if t.text == "" || strings.ContainsFunc(t.text, func(r rune) bool {
				return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r)
			}) {
				err = fmt.Errorf("invalid character(s) in term '%s'", t.text)
			}
		}
		if err != nil {
			return nil, err
		}
		if optional {
			out.optional = append(out.optional, t)
		} else {
			out.terms = append(out.terms, t)
		}
	}
}

// A comparison is an operator with a literal.
type comparison struct {
	op     string // = != < > <= >=
	text   string // of the literal, without quotes
	quoted bool
	number float64
	isNum  bool
	re     *regexp.Regexp
}

var operators = []string{"!=", "<=", ">=", "=", "<", ">"}

// comparison reads an operator and a literal. Bare literals end at a blank or at one
// of stops.
func (p *patternParser) comparison(stops string) (c comparison, err error) {
	for _, op := range operators {
		if p.take(op) {
			c.op = op
			break
		}
	}
	if c.op == "" {
		return c, p.unexpected("an operator")
	}
	p.space()
	switch {
	case strings.HasPrefix(p.rest, `"`):
		p.rest = p.rest[1:]
		c.quoted = true
		c.text, err = p.quoted()
	case strings.HasPrefix(p.rest, "%"):
		p.rest = p.rest[1:]
		c.re, err = p.regex()
	default:
		n := strings.IndexAny(p.rest, " \t\r\n\""+stops)
		if n < 0 {
			n = len(p.rest)
		}
		c.text, p.rest = p.rest[:n], p.rest[n:]
		if c.text == "" {
			return c, p.unexpected("a value")
		}
		c.number, c.isNum = number(c.text)
	}
	if err == nil && c.op != "=" && c.op != "!=" && !c.isNum {
		err = fmt.Errorf("%s compares numbers, and %q is none", c.op, c.text)
	}
	return c, err
}

// number is strconv.ParseFloat without names and hexadecimal forms.
func number(s string) (float64, bool) {
	if strings.Trim(s, "0123456789+-.eE") != "" {
		return 0, false
	}
	f, err := strconv.ParseFloat(s, 64)
	return f, err == nil
}

// text compares with a text.
func (c *comparison) match(s string) bool {
	switch {
	case c.re != nil:
		return c.re.MatchString(s) == (c.op == "=")
	case c.isNum:
		if f, ok := number(s); ok {
			switch c.op {
			case "=":
				return f == c.number
			case "!=":
				return f != c.number
			case "<":
				return f < c.number
			case ">":
				return f > c.number
			case "<=":
				return f <= c.number
			default:
				return f >= c.number
			}
		}
		if c.op != "=" && c.op != "!=" {
			return false
		}
	}
	return wildcard(c.text, s) == (c.op == "=")
}

// wildcard matches s with a text in which * stands for anything.
func wildcard(pattern, s string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == s
	}
	rest, ok := strings.CutPrefix(s, parts[0])
	if !ok {
		return false
	}
	last := parts[len(parts)-1]
	for _, part := range parts[1 : len(parts)-1] {
		i := strings.Index(rest, part)
		if i < 0 {
			return false
		}
		rest = rest[i+len(part):]
	}
	return strings.HasSuffix(rest, last)
}

// The JSON form.

type jsonExpr interface {
	match(v any) bool
	each(func(*jsonCondition))
}

type jsonAll []jsonExpr

func (a jsonAll) match(v any) bool {
	for _, e := range a {
		if !e.match(v) {
			return false
		}
	}
	return true
}

func (a jsonAll) each(f func(*jsonCondition)) {
	for _, e := range a {
		e.each(f)
	}
}

type jsonAny []jsonExpr

func (a jsonAny) match(v any) bool {
	for _, e := range a {
		if e.match(v) {
			return true
		}
	}
	return false
}

func (a jsonAny) each(f func(*jsonCondition)) { jsonAll(a).each(f) }

type jsonCondition struct {
	selector selector
	is       string // NULL, TRUE, FALSE, EXISTS, NOT EXISTS; "": compare
	compare  comparison
}

func (c *jsonCondition) each(f func(*jsonCondition)) { f(c) }

func (c *jsonCondition) match(v any) bool {
	found := c.selector.find(v)
	switch c.is {
	case "EXISTS":
		return len(found) > 0
	case "NOT EXISTS":
		return len(found) == 0
	}
	for _, x := range found {
		switch c.is {
		case "NULL":
			if x == nil {
				return true
			}
		case "TRUE", "FALSE":
			if b, ok := x.(bool); ok && b == (c.is == "TRUE") {
				return true
			}
		default:
			if c.matchValue(x) {
				return true
			}
		}
	}
	return false
}

func (c *jsonCondition) matchValue(x any) bool {
	s, ok := scalar(x)
	if !ok {
		return false
	}
	if _, isNumber := x.(json.Number); !isNumber && c.compare.isNum {
		// A string of digits is no number.
		return (c.compare.op == "=" || c.compare.op == "!=") && wildcard(c.compare.text, s) == (c.compare.op == "=")
	} else if isNumber && c.compare.quoted && c.compare.text != "*" {
		return c.compare.op == "!="
	}
	return c.compare.match(s)
}

// scalar is a value as text.
func scalar(x any) (string, bool) {
	switch x := x.(type) {
	case string:
		return x, true
	case json.Number:
		return x.String(), true
	case bool:
		return strconv.FormatBool(x), true
	}
	return "", false
}

func parseJSON(message string) (any, bool) {
	s := strings.TrimSpace(message)
	if s == "" || s[0] != '{' && s[0] != '[' {
		return nil, false
	}
	d := json.NewDecoder(strings.NewReader(s))
	d.UseNumber()
	var v any
	if d.Decode(&v) != nil {
		return nil, false
	}
	_, err := d.Token()
	return v, err == io.EOF
}

// A selector finds values: $.a.b, $.a[0], $.a["b c"], $.a[*], $.a.*.
type selector struct {
	text  string
	steps []step
}

type step struct {
	name  string
	index int
	kind  byte // n: name, i: index, *: all
}

func (s *selector) find(v any) []any {
	found := []any{v}
	for _, st := range s.steps {
		var next []any
		for _, x := range found {
			switch x := x.(type) {
			case map[string]any:
				if st.kind == '*' {
					for _, y := range x {
						next = append(next, y)
					}
				} else if y, ok := x[st.name]; ok && st.kind == 'n' {
					next = append(next, y)
				}
			case []any:
				if st.kind == '*' {
					next = append(next, x...)
				} else if st.kind == 'i' && st.index < len(x) {
					next = append(next, x[st.index])
				}
			}
		}
		found = next
	}
	return found
}

func (p *patternParser) selector() (s selector, err error) {
	p.space()
	begin := p.rest
	if !strings.HasPrefix(p.rest, "$") {
		return s, p.unexpected("a selector, which begins with $")
	}
	p.rest = p.rest[1:]
	for {
		switch {
		case strings.HasPrefix(p.rest, "["):
			p.rest = p.rest[1:]
			st, err := p.bracket()
			if err != nil {
				return s, err
			}
			s.steps = append(s.steps, st)
		case strings.HasPrefix(p.rest, ".["):
			p.rest = p.rest[1:]
		case strings.HasPrefix(p.rest, ".*"):
			p.rest = p.rest[2:]
			s.steps = append(s.steps, step{kind: '*'})
		case strings.HasPrefix(p.rest, "."):
			p.rest = p.rest[1:]
			n := 0
			for n < len(p.rest) {
				r, size := utf8.DecodeRuneInString(p.rest[n:])
				if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_-@:/#", r) {
					break
				}
				n += size
			}
			if n == 0 {
				return s, p.unexpected("a name")
			}
			s.steps = append(s.steps, step{kind: 'n', name: p.rest[:n]})
			p.rest = p.rest[n:]
		default:
			if len(s.steps) == 0 {
				return s, p.unexpected("a name after $")
			}
			s.text = begin[:len(begin)-len(p.rest)]
			return s, nil
		}
	}
}

func (p *patternParser) bracket() (st step, err error) {
	p.space()
	switch {
	case p.take("*"):
		st.kind = '*'
	case p.take(`"`):
		st.kind = 'n'
		st.name, err = p.quoted()
	case p.take("'"):
		st.kind = 'n'
		name, rest, ok := strings.Cut(p.rest, "'")
		if !ok {
			return st, errors.New("a quote is not closed")
		}
		st.name, p.rest = name, rest
	default:
		n := 0
		for n < len(p.rest) && p.rest[n] >= '0' && p.rest[n] <= '9' {
			n++
		}
		st.kind = 'i'
		if st.index, err = strconv.Atoi(p.rest[:n]); err != nil {
			return st, p.unexpected("an index")
		}
		p.rest = p.rest[n:]
	}
	if err == nil && !p.take("]") {
		err = p.unexpected("]")
	}
	return st, err
}

func (p *patternParser) jsonOr(depth int) (jsonExpr, error) {
	var list jsonAny
	for {
		var all jsonAll
		for {
			e, err := p.jsonOne(depth)
			if err != nil {
				return nil, err
			}
			all = append(all, e)
			if !p.take("&&") {
				break
			}
		}
		list = append(list, all)
		if !p.take("||") {
			return list, nil
		}
	}
}

func (p *patternParser) jsonOne(depth int) (jsonExpr, error) {
	if p.take("(") {
		if depth >= maxPatternDepth {
			return nil, errors.New("parentheses are nested too deep")
		}
		e, err := p.jsonOr(depth + 1)
		if err == nil && !p.take(")") {
			err = p.unexpected(")")
		}
		return e, err
	}
	c := &jsonCondition{}
	var err error
	if c.selector, err = p.selector(); err != nil {
		return nil, err
	}
	switch {
	case p.word("IS"):
		for _, w := range []string{"NULL", "TRUE", "FALSE"} {
			if p.word(w) {
				c.is = w
				return c, nil
			}
		}
		return nil, p.unexpected("NULL, TRUE or FALSE")
	case p.word("NOT"):
		if !p.word("EXISTS") {
			return nil, p.unexpected("EXISTS")
		}
		c.is = "NOT EXISTS"
		return c, nil
	case p.word("EXISTS"):
		c.is = "EXISTS"
		return c, nil
	}
	c.compare, err = p.comparison("(){}&|=<>!")
	return c, err
}

// word takes a word, whatever its case.
func (p *patternParser) word(w string) bool {
	p.space()
	if len(p.rest) < len(w) || !strings.EqualFold(p.rest[:len(w)], w) {
		return false
	}
	if r, _ := utf8.DecodeRuneInString(p.rest[len(w):]); unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' {
		return false
	}
	p.rest = p.rest[len(w):]
	return true
}

// The form of fields.

type fieldsPattern struct {
	before, after []fieldPattern
	ellipsis      bool // any number of fields between before and after
}

type fieldPattern struct {
	name string
	// any of all; no conditions hold always.
	any [][]comparison
}

type field struct{ name, value string }

func (f *fieldPattern) match(s string) bool {
	if len(f.any) == 0 {
		return true
	}
	for _, all := range f.any {
		ok := true
		for _, c := range all {
			ok = ok && c.match(s)
		}
		if ok {
			return true
		}
	}
	return false
}

// match returns the fields of a message that matches, else nil.
func (p *fieldsPattern) match(message string) []field {
	values := splitFields(message)
	n := len(p.before) + len(p.after)
	if len(values) < n || len(values) > n && !p.ellipsis {
		return nil
	}
	out := make([]field, len(values))
	for i, v := range values {
		out[i].value = v
		var f *fieldPattern
		if i < len(p.before) {
			f = &p.before[i]
		} else if j := i - (len(values) - len(p.after)); j >= 0 {
			f = &p.after[j]
		} else {
			continue
		}
		if !f.match(v) {
			return nil
		}
		out[i].name = f.name
	}
	return out
}

// splitFields divides at blanks; what is in quotes or brackets is one field.
func splitFields(s string) []string {
	var list []string
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		if s == "" {
			return list
		}
		closing := map[byte]string{'"': `"`, '[': "]"}[s[0]]
		if closing != "" {
			if i := strings.Index(s[1:], closing); i >= 0 {
				list = append(list, s[1:1+i])
				s = s[i+2:]
				continue
			}
		}
		i := strings.IndexAny(s, " \t\r\n")
		if i < 0 {
			i = len(s)
		}
		list = append(list, s[:i])
		s = s[i:]
	}
}

func (p *patternParser) parseFields() (*fieldsPattern, error) {
	p.rest = p.rest[1:]
	out := &fieldsPattern{}
	if p.take("]") {
		return nil, errors.New("no fields between brackets")
	}
	for {
		if p.take("...") {
			if out.ellipsis {
				return nil, errors.New("... may stand once")
			}
			out.ellipsis = true
		} else {
			f, err := p.field()
			if err != nil {
				return nil, err
			}
			if out.ellipsis {
				out.after = append(out.after, f)
			} else {
				out.before = append(out.before, f)
			}
		}
		if p.take(",") {
			continue
		}
		if !p.take("]") {
			return nil, p.unexpected(", or ]")
		}
		if p.space(); p.rest != "" {
			return nil, p.unexpected("the end")
		}
		return out, nil
	}
}

func (p *patternParser) fieldName() string {
	p.space()
	n := 0
	for n < len(p.rest) {
		r, size := utf8.DecodeRuneInString(p.rest[n:])
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && !strings.ContainsRune("_-@.$:", r) {
			break
		}
		n += size
	}
	name := p.rest[:n]
	p.rest = p.rest[n:]
	return name
}

func (p *patternParser) field() (f fieldPattern, err error) {
	p.space()
	if f.name = p.fieldName(); f.name == "" && !strings.HasPrefix(p.rest, ",") && !strings.HasPrefix(p.rest, "]") {
		return f, p.unexpected("the name of a field")
	}
	for {
		p.space()
		if p.rest == "" || p.rest[0] == ',' || p.rest[0] == ']' {
			return f, nil
		}
		or := len(f.any) == 0
		if len(f.any) > 0 {
			switch {
			case p.take("||"):
				or = true
			case p.take("&&"):
			default:
				return f, p.unexpected("&&, ||, a comma or ]")
			}
			if name := p.fieldName(); name != f.name {
				return f, fmt.Errorf("a condition on %q within the field %q", name, f.name)
			}
		}
		c, err := p.comparison(",]&|=<>!")
		if err != nil {
			return f, err
		}
		if or {
			f.any = append(f.any, nil)
		}
		last := len(f.any) - 1
		f.any[last] = append(f.any[last], c)
	}
}
