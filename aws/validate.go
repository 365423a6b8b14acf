package aws

import (
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/lambdad/lambdad"
)

// A Constraint is what a model, or a recording where that says otherwise, asks of
// a value. The zero value asks nothing.
type Constraint struct {
	Min, Max *float64 // length of strings, lists and maps; value of numbers
	Pattern  *Pattern // strings: all of it must match
	Enum     []string // strings

	// Element is asked of each element of a list, Key and Value of each entry of
	// a map.
	Element, Key, Value *Constraint
	// NotNull is printed as the last rule of an element.
	NotNull bool
	// Bare prints an element's only rule as if it were the list's own.
	Bare bool
}

// A Pattern is a regular expression as AWS prints it, compiled at first use.
type Pattern struct {
	text string
	re   func() *regexp.Regexp
}

// NewPattern returns a pattern. Expr is what Go understands if text is not.
func NewPattern(text, expr string) *Pattern {
	if expr == "" {
		expr = text
	}
	return &Pattern{text, sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`\A(?:` + expr + `)\z`) })}
}

// Matches reports whether the pattern matches all of s.
func (p *Pattern) Matches(s string) bool { return p.re().MatchString(s) }

// String returns the pattern as AWS prints it.
func (p *Pattern) String() string { return p.text }

// A Validator collects what is wrong with a request and words it as AWS does
// (control-plane.md section 2.3). Paths are member names in camel case joined by
// dots.
type Validator struct {
	items []string
	quiet bool // neither values nor enumerations
}

// Err returns a ValidationException, or nil if nothing was wrong.
func (v *Validator) Err() error {
	if len(v.items) == 0 {
		return nil
	}
	word := " validation errors detected: "
	if len(v.items) == 1 {
		word = " validation error detected: "
	}
	return &lambdad.Error{Code: "ValidationException", Message: strconv.Itoa(len(v.items)) + word + strings.Join(v.items, "; ")}
}

func (v *Validator) add(value, path, rule string) {
	if v.quiet {
		if strings.HasPrefix(rule, enumRule) {
			rule = enumRule
		}
		v.items = append(v.items, "Value at '"+path+"' failed to satisfy constraint: "+rule)
		return
	}
	v.items = append(v.items, "Value '"+value+"' at '"+path+"' failed to satisfy constraint: "+rule)
}

// Required notes the absence of a member that must be there.
func (v *Validator) Required(path string, present bool) {
	if !present {
		v.items = append(v.items, "Value null at '"+path+"' failed to satisfy constraint: Member must not be null")
	}
}

// String checks a string; nil is absent and passes.
func (v *Validator) String(path string, s *string, c *Constraint) {
	if s == nil {
		return
	}
	for _, r := range c.stringRules() {
		if !r.ok(*s) {
			v.add(*s, path, r.text)
		}
	}
}

// Number checks a number; nil is absent and passes.
func (v *Validator) Number(path string, n *float64, c *Constraint) {
	if n == nil {
		return
	}
	for _, r := range c.valueRules() {
		if !r.ok(*n) {
			v.add(number(*n), path, r.text)
		}
	}
}

// Int checks an integer; nil is absent and passes.
func (v *Validator) Int(path string, n *int64, c *Constraint) {
	if n != nil {
		f := float64(*n)
		v.Number(path, &f, c)
	}
}

// Length checks the length of a list or map that is printed as value.
func (v *Validator) Length(path, value string, n int, c *Constraint) {
	for _, r := range c.lengthRules() {
		if !r.ok(n) {
			v.add(value, path, r.text)
		}
	}
}

// Strings checks a list of strings; nil is absent and passes.
func (v *Validator) Strings(path string, list []string, c *Constraint) {
	if list == nil {
		return
	}
	value := "[" + strings.Join(list, ", ") + "]"
	v.Length(path, value, len(list), c)
	if c.Element == nil {
		return
	}
	rules := c.Element.stringRules()
	if slices.ContainsFunc(list, func(s string) bool { return !passes(rules, s) }) {
		v.add(value, path, elementText("Member must satisfy constraint: ", rules, c.Element))
	}
}

// Map checks a map of strings; nil is absent and passes. Entries are printed in
// the order of their keys.
func (v *Validator) Map(path string, m map[string]string, c *Constraint) {
	if m == nil {
		return
	}
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	var b strings.Builder
	for i, k := range keys {
		if i > 0 {
			b.WriteString(", ")
		}
		b.WriteString(k + "=" + m[k])
	}
	value := "{" + b.String() + "}"
	v.Length(path, value, len(m), c)
	check := func(head string, c *Constraint, of func(key string) string) {
		if c == nil {
			return
		}
		rules := c.stringRules()
		if slices.ContainsFunc(keys, func(k string) bool { return !passes(rules, of(k)) }) {
			v.add(value, path, elementText(head, rules, c))
		}
	}
	check("Map keys must satisfy constraint: ", c.Key, func(k string) string { return k })
	check("Map value must satisfy constraint: ", c.Value, func(k string) string { return m[k] })
}

// Numbers is Map for a map of decimal fractions.
func (v *Validator) Numbers(path string, m map[string]float64, c *Constraint) {
	if m == nil {
		return
	}
	keys := slices.Sorted(maps.Keys(m))
	entries := make([]string, len(keys))
	for i, k := range keys {
		entries[i] = k + "=" + fraction(m[k])
	}
	value := "{" + strings.Join(entries, ", ") + "}"
	v.Length(path, value, len(m), c)
	if c.Key != nil {
		rules := c.Key.stringRules()
		if slices.ContainsFunc(keys, func(k string) bool { return !passes(rules, k) }) {
			v.add(value, path, elementText("Map keys must satisfy constraint: ", rules, c.Key))
		}
	}
	if c.Value != nil {
		rules := c.Value.fractionRules()
		if slices.ContainsFunc(keys, func(k string) bool { return !passes(rules, m[k]) }) {
			v.add(value, path, elementText("Map value must satisfy constraint: ", rules, c.Value))
		}
	}
}

// A rule is one constraint and its wording.
type rule[T any] struct {
	text string
	ok   func(T) bool
}

func passes[T any](rules []rule[T], v T) bool {
	for _, r := range rules {
		if !r.ok(v) {
			return false
		}
	}
	return true
}

// elementText words the rules of elements: all of them, not only the broken one.
func elementText[T any](head string, rules []rule[T], c *Constraint) string {
	texts := make([]string, 0, len(rules)+1)
	for _, r := range rules {
		texts = append(texts, r.text)
	}
	if c.Bare {
		return strings.Join(texts, ", ")
	}
	if c.NotNull {
		texts = append(texts, "Member must not be null")
	}
	return head + "[" + strings.Join(texts, ", ") + "]"
}

func (c *Constraint) lengthRules() (rules []rule[int]) {
	if c.Max != nil {
		rules = append(rules, rule[int]{"Member must have length less than or equal to " + number(*c.Max),
			func(n int) bool { return float64(n) <= *c.Max }})
	}
	if c.Min != nil {
		rules = append(rules, rule[int]{"Member must have length greater than or equal to " + number(*c.Min),
			func(n int) bool { return float64(n) >= *c.Min }})
	}
	return rules
}

func (c *Constraint) valueRules() []rule[float64] { return c.numberRules(number) }

// fractionRules are valueRules as decimal fractions print them.
func (c *Constraint) fractionRules() []rule[float64] { return c.numberRules(fraction) }

func (c *Constraint) numberRules(text func(float64) string) (rules []rule[float64]) {
	if c.Max != nil {
		rules = append(rules, rule[float64]{"Member must have value less than or equal to " + text(*c.Max),
			func(n float64) bool { return n <= *c.Max }})
	}
	if c.Min != nil {
		rules = append(rules, rule[float64]{"Member must have value greater than or equal to " + text(*c.Min),
			func(n float64) bool { return n >= *c.Min }})
	}
	return rules
}

func (c *Constraint) stringRules() (rules []rule[string]) {
	for _, r := range c.lengthRules() {
		rules = append(rules, rule[string]{r.text, func(s string) bool { return r.ok(len([]rune(s))) }})
	}
	if c.Pattern != nil {
		rules = append(rules, rule[string]{"Member must satisfy regular expression pattern: " + c.Pattern.text, c.Pattern.Matches})
	}
	if len(c.Enum) > 0 {
		rules = append(rules, rule[string]{"Member must satisfy enum value set: [" + strings.Join(c.Enum, ", ") + "]",
			func(s string) bool { return slices.Contains(c.Enum, s) }})
	}
	return rules
}

const enumRule = "Member must satisfy enum value set"

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// fraction prints a number with at least one decimal place.
func fraction(f float64) string {
	s := number(f)
	if strings.IndexByte(s, '.') < 0 {
		s += ".0"
	}
	return s
}

// ElementPath is the path of the members of a list's element, counted from 1.
func ElementPath(list string, i int) string { return list + "." + strconv.Itoa(i+1) + ".member." }
