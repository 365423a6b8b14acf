package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/lambdad/lambdad"
)

// A Form is a kind of document, by what it may hold.
type Form int

const (
	// ForIdentity has no principals: policies of users, groups and roles,
	// boundaries and session policies.
	ForIdentity Form = iota
	// ForTrust has no resources and allows to assume a role.
	ForTrust
	// ForResource has principals and resources: policies of functions, layers,
	// buckets.
	ForResource
	// ForRepository has principals and no resources, since it hangs on the only one:
	// policies of image repositories.
	ForRepository
)

// maxDocument bounds what is looked at at all; each kind has a smaller limit of
// its own where it is kept.
const maxDocument = 131072

// Parse reads a document. What is wrong with it is a *lambdad.Error with the code
// MalformedPolicyDocument.
func Parse(text string, form Form) (*Document, error) {
	d := &Document{Text: text}
	if len(text) > maxDocument {
		return nil, malformed("The policy is longer than %d bytes.", maxDocument)
	}
	root, err := decode(text)
	if err != nil {
		if form == ForTrust {
			return nil, malformed("This policy contains invalid Json")
		}
		return nil, malformed("Syntax errors in policy.")
	}
	doc, ok := root.(map[string]any)
	if !ok {
		return nil, malformed("Syntax errors in policy.")
	}
	variables := false
	for key, v := range doc {
		switch key {
		case "Version":
			switch v {
			case "2012-10-17":
				variables = true
			case "2008-10-17":
			default:
				return nil, malformed("The policy must contain a valid version string")
			}
		case "Id":
			if _, ok := v.(string); !ok {
				return nil, malformed("Syntax errors in policy.")
			}
		case "Statement":
		default:
			return nil, malformed("Syntax errors in policy.")
		}
	}
	list, ok := doc["Statement"].([]any)
	if one, isOne := doc["Statement"].(map[string]any); isOne {
		list, ok = []any{one}, true
	}
	if !ok || len(list) == 0 {
		return nil, malformed("Syntax errors in policy.")
	}
	sids := map[string]bool{}
	for _, v := range list {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, malformed("Syntax errors in policy.")
		}
		s, err := parseStatement(m, form, variables)
		if err != nil {
			return nil, err
		}
		if s.sid != "" && sids[s.sid] {
			return nil, malformed("Statement IDs (SID) in a single policy must be unique.")
		}
		sids[s.sid] = true
		d.statements = append(d.statements, s)
	}
	return d, nil
}

// MustParse is Parse for documents that are part of the program.
func MustParse(name, text string, form Form) *Document {
	d, err := Parse(text, form)
	if err != nil {
		panic("policy: " + name + ": " + err.Error())
	}
	d.Name = name
	return d
}

func malformed(format string, args ...any) error {
	return lambdad.Errorf("MalformedPolicyDocument", format, args...)
}

// maxDepth is deeper than any document that means something.
const maxDepth = 16

// decode reads JSON strictly: no member twice, nothing after the end, no control
// characters that stand for wildcards within.
func decode(text string) (any, error) {
	dec := json.NewDecoder(strings.NewReader(text))
	dec.UseNumber()
	v, err := decodeValue(dec, 0)
	if err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the document")
	}
	return v, nil
}

func decodeValue(dec *json.Decoder, depth int) (any, error) {
	t, err := dec.Token()
	if err != nil {
		return nil, err
	}
	if depth > maxDepth {
		return nil, errors.New("nested too deep")
	}
	switch t := t.(type) {
	case string:
		if strings.ContainsAny(t, "\x00\x01\x02") {
			return nil, errors.New("control characters")
		}
		return t, nil
	case json.Delim:
		if t == '[' {
			list := []any{}
			for dec.More() {
				v, err := decodeValue(dec, depth+1)
				if err != nil {
					return nil, err
				}
				list = append(list, v)
			}
			_, err := dec.Token()
			return list, err
		}
		m := map[string]any{}
		for dec.More() {
			k, err := dec.Token()
			if err != nil {
				return nil, err
			}
			key, ok := k.(string)
			if !ok {
				return nil, errors.New("a member without name")
			}
			if _, twice := m[key]; twice {
				return nil, fmt.Errorf("member %q twice", key)
			}
			if m[key], err = decodeValue(dec, depth+1); err != nil {
				return nil, err
			}
		}
		_, err := dec.Token()
		return m, err
	}
	return t, nil
}

// texts reads a string or a list of strings. With scalars, numbers and booleans
// count as their text.
func texts(v any, scalars bool) ([]string, bool) {
	list, ok := v.([]any)
	if !ok {
		list = []any{v}
	}
	out := make([]string, 0, len(list))
	for _, e := range list {
		switch e := e.(type) {
		case string:
			out = append(out, e)
			continue
		case json.Number:
			if scalars {
				out = append(out, e.String())
				continue
			}
		case bool:
			if scalars {
				out = append(out, fmt.Sprint(e))
				continue
			}
		}
		return nil, false
	}
	return out, true
}

var sidPattern = regexp.MustCompile(`\A[0-9A-Za-z]*\z`)

func parseStatement(m map[string]any, form Form, variables bool) (s statement, err error) {
	syntax := malformed("Syntax errors in policy.")
	for key := range m {
		switch key {
		case "Sid", "Effect", "Action", "NotAction", "Resource", "NotResource", "Condition", "Principal", "NotPrincipal":
		default:
			if form == ForTrust {
				return s, malformed("Unknown field %s", key)
			}
			return s, syntax
		}
	}
	if v, ok := m["Sid"]; ok {
		if s.sid, ok = v.(string); !ok {
			return s, syntax
		}
		if form != ForResource && form != ForRepository && !sidPattern.MatchString(s.sid) {
			return s, malformed("Statement IDs (SID) must be alpha-numeric. Check that your input satisfies the regular expression [0-9A-Za-z]*")
		}
	}
	switch m["Effect"] {
	case "Allow":
		s.allow = true
	case "Deny":
	case nil:
		if form == ForTrust {
			return s, malformed("Missing required field Effect")
		}
		return s, syntax
	default:
		return s, malformed("Invalid effect: %v", m["Effect"])
	}
	if err := s.parsePrincipals(m, form); err != nil {
		return s, err
	}
	if err := s.parseActions(m, form); err != nil {
		return s, err
	}
	if err := s.parseResources(m, form, variables); err != nil {
		return s, err
	}
	return s, s.parseConditions(m, variables)
}

// either returns the one of two elements that is there.
func either(m map[string]any, name string) (v any, not, ok bool) {
	v, ok = m[name]
	n, okNot := m["Not"+name]
	if ok && okNot {
		return nil, false, false
	}
	if okNot {
		return n, true, true
	}
	return v, false, ok
}

func (s *statement) parseActions(m map[string]any, form Form) error {
	v, not, ok := either(m, "Action")
	list, isText := texts(v, false)
	if !ok || len(list) == 0 && isText {
		if form == ForTrust {
			return malformed("Missing required field Action")
		}
		return malformed("Policy statement must contain actions.")
	}
	if !isText {
		return malformed("Syntax errors in policy.")
	}
	s.notAction = not
	for _, a := range list {
		vendor, name, ok := strings.Cut(a, ":")
		if a != "*" && !ok || strings.Contains(name, ":") {
			return malformed("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
		}
		if a != "*" && (vendor == "" || name == "" || strings.ContainsAny(a, " \t\r\n")) {
			return malformed("Vendor %s is not valid", vendor)
		}
		if form == ForTrust && !strings.HasPrefix(lower(a), "sts:") && a != "*" {
			return malformed("AssumeRole policy may only specify STS AssumeRole actions.")
		}
		s.actions = append(s.actions, newPattern(lower(a), false))
	}
	return nil
}

func (s *statement) parseResources(m map[string]any, form Form, variables bool) error {
	v, not, ok := either(m, "Resource")
	if form == ForTrust || form == ForRepository {
		for _, key := range []string{"Resource", "NotResource"} {
			if m[key] != nil {
				return malformed("Has prohibited field %s", key)
			}
		}
		s.anyRes = true
		return nil
	}
	list, isText := texts(v, false)
	if !ok || len(list) == 0 && isText {
		return malformed("Policy statement must contain resources.")
	}
	if !isText {
		return malformed("Syntax errors in policy.")
	}
	s.notRes = not
	for _, r := range list {
		if r != "*" {
			parts := splitARN(r)
			if parts[0] != "arn" || len(parts) < 6 && !strings.ContainsAny(r, "*?") {
				return malformed(`Resource %s must be in ARN format or "*".`, r)
			}
			if len(parts) > 1 && !strings.ContainsAny(parts[1], "*?$") && parts[1] != "aws" && !strings.HasPrefix(parts[1], "aws-") {
				return malformed(`Partition "%s" is not valid for resource "%s".`, parts[1], r)
			}
		}
		s.resources = append(s.resources, newPattern(r, variables))
	}
	return nil
}

var (
	accountPattern = regexp.MustCompile(`\A\d{12}\z`)
	rootPattern    = regexp.MustCompile(`\Aarn:aws[a-zA-Z-]*:iam::(\d{12}):root\z`)
	arnPattern     = regexp.MustCompile(`\Aarn:aws[a-zA-Z-]*:(?:iam|sts)::\d{12}:(?:user|role|assumed-role|federated-user)/[^*?]+\z`)
)

func (s *statement) parsePrincipals(m map[string]any, form Form) error {
	v, not, ok := either(m, "Principal")
	if form == ForIdentity {
		if m["Principal"] != nil || m["NotPrincipal"] != nil {
			return malformed("Policy document should not specify a principal.")
		}
		return nil
	}
	if !ok {
		return malformed("Missing required field Principal")
	}
	if not && s.allow {
		return malformed("NotPrincipal is allowed with the effect Deny only.")
	}
	p := &principals{not: not}
	s.principals = p
	if v == "*" {
		p.any = true
		return nil
	}
	kinds, ok := v.(map[string]any)
	if !ok || len(kinds) == 0 {
		return malformed("Invalid principal in policy")
	}
	for kind, v := range kinds {
		list, ok := texts(v, false)
		if !ok {
			return malformed("Invalid principal in policy: \"%s\"", strings.ToUpper(kind))
		}
		for _, t := range list {
			switch kind {
			case "AWS":
				if root := rootPattern.FindStringSubmatch(t); root != nil {
					p.accounts = append(p.accounts, root[1])
				} else if accountPattern.MatchString(t) {
					p.accounts = append(p.accounts, t)
				} else if t == "*" {
					p.any = true
				} else if arnPattern.MatchString(t) {
					p.arns = append(p.arns, t)
				} else {
					return malformed(`Invalid principal in policy: "AWS":"%s"`, t)
				}
			case "Service":
				if !strings.Contains(t, ".") || strings.ContainsAny(t, "*?") {
					return malformed(`Invalid principal in policy: "SERVICE":"%s"`, t)
				}
				p.services = append(p.services, lower(t))
			case "Federated", "CanonicalUser":
				p.other = true
			default:
				return malformed(`Invalid principal in policy: "%s":"%s"`, strings.ToUpper(kind), t)
			}
		}
	}
	return nil
}

func (s *statement) parseConditions(m map[string]any, variables bool) error {
	v, ok := m["Condition"]
	if !ok {
		return nil
	}
	ops, ok := v.(map[string]any)
	if !ok {
		return malformed("Syntax errors in policy.")
	}
	for op, v := range ops {
		keys, ok := v.(map[string]any)
		if !ok {
			return malformed("Syntax errors in policy.")
		}
		for key, v := range keys {
			values, ok := texts(v, true)
			if !ok {
				return malformed("Syntax errors in policy.")
			}
			if !strings.Contains(key, ":") {
				return malformed("Actions/Conditions must be prefaced by a vendor, e.g., iam, sdb, ec2, etc.")
			}
			c, ok := newCondition(op, key, values, variables)
			if !ok {
				return malformed("Invalid Condition type : %s.", op)
			}
			s.conditions = append(s.conditions, c)
		}
	}
	slices.SortFunc(s.conditions, func(a, b condition) int {
		return strings.Compare(a.operator+a.key, b.operator+b.key)
	})
	return nil
}

// Size is how many characters of a document count for its limit: all but white
// space.
func Size(text string) int {
	n := 0
	for _, r := range text {
		switch r {
		case ' ', '\t', '\n', '\r':
		default:
			n++
		}
	}
	return n
}

// Statement returns the text of the nth statement, from 1, indented; "" if there is
// none.
func (d *Document) Statement(n int) string {
	var doc struct{ Statement json.RawMessage }
	if json.Unmarshal([]byte(d.Text), &doc) != nil {
		return ""
	}
	var list []json.RawMessage
	if json.Unmarshal(doc.Statement, &list) != nil {
		list = []json.RawMessage{doc.Statement}
	}
	if n < 1 || n > len(list) {
		return ""
	}
	var b bytes.Buffer
	if json.Indent(&b, list[n-1], "", "  ") != nil {
		return ""
	}
	return b.String()
}
