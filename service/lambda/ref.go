package lambda

import (
	"regexp"
	"strconv"
	"strings"

	"github.com/lambdad/lambdad"
)

// A functionRef is what a caller wrote where a function is named: a plain name, a
// partial or a full ARN (control-plane.md section 2.2). Parts not written are "".
type functionRef struct {
	account, region, name, qualifier string
}

// parseFunctionRef takes a spelling apart as the pattern of function names does,
// whose groups are greedy: "function" is a function of that name,
// "function:f" is f. It reports false for what the pattern refuses. Published
// names are stricter than this (letters, digits, - and _); with dots a name is
// well-formed and never found.
func parseFunctionRef(s string) (ref functionRef, ok bool) {
	if strings.IndexByte(s, ':') < 0 { // nearly always
		return functionRef{name: s}, isName(s)
	}
	parts := strings.Split(s, ":")
	if len(parts) > 8 {
		return functionRef{}, false
	}
	if parts[0] == "arn" && len(parts) > 3 && isPartition(parts[1]) && parts[2] == "lambda" {
		if ref, ok := parseAfterARN(parts[3:]); ok {
			return ref, true
		}
	}
	return parseAfterARN(parts)
}

// parseAfterARN matches the optional groups that come before the name: each is
// taken if the rest then still matches.
func parseAfterARN(parts []string) (functionRef, bool) {
	if len(parts) > 1 && isRegion(parts[0]) {
		if ref, ok := parseAfterRegion(parts[1:]); ok {
			ref.region = parts[0]
			return ref, true
		}
	}
	return parseAfterRegion(parts)
}

func parseAfterRegion(parts []string) (functionRef, bool) {
	if len(parts) > 1 && isAccount(parts[0]) {
		if ref, ok := parseAfterAccount(parts[1:]); ok {
			ref.account = parts[0]
			return ref, true
		}
	}
	return parseAfterAccount(parts)
}

func parseAfterAccount(parts []string) (functionRef, bool) {
	if len(parts) > 1 && parts[0] == "function" {
		if ref, ok := parseName(parts[1:]); ok {
			return ref, true
		}
	}
	return parseName(parts)
}

func parseName(parts []string) (functionRef, bool) {
	switch {
	case len(parts) == 1 && isName(parts[0]):
		return functionRef{name: parts[0]}, true
	case len(parts) == 2 && isName(parts[0]) && isRefQualifier(parts[1]):
		return functionRef{name: parts[0], qualifier: parts[1]}, true
	}
	return functionRef{}, false
}

func isName(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; !isWordByte(c) && c != '.' {
			return false
		}
	}
	return s != ""
}

func isRefQualifier(s string) bool {
	return s == "$LATEST" || s == "$LATEST.PUBLISHED" || isWord(s)
}

// isQualifier is the pattern of the Qualifier parameter.
func isQualifier(s string) bool {
	if s == "$LATEST.PUBLISHED" {
		return true
	}
	for i := 0; i < len(s); i++ {
		if !isWordByte(s[i]) && s[i] != '$' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

func isWord(s string) bool {
	for i := 0; i < len(s); i++ {
		if !isWordByte(s[i]) {
			return false
		}
	}
	return s != ""
}

func isWordByte(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' || c == '_'
}

func isAccount(s string) bool { return len(s) == 12 && isDigits(s) }

func isDigits(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < '0' || s[i] > '9' {
			return false
		}
	}
	return s != ""
}

func isPartition(s string) bool {
	rest, ok := strings.CutPrefix(s, "aws")
	if !ok {
		return s == ""
	}
	for i := 0; i < len(rest); i++ {
		if c := rest[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' {
			return false
		}
	}
	return true
}

// isRegion is the pattern (eusc-)?[a-z]{2}((-gov)|(-iso([a-z]?)))?-[a-z]+-\d{1}.
func isRegion(s string) bool {
	if rest, ok := strings.CutPrefix(s, "eusc-"); ok && isPlainRegion(rest) {
		return true
	}
	return isPlainRegion(s)
}

func isPlainRegion(s string) bool {
	parts := strings.Split(s, "-")
	if len(parts) == 4 {
		special := parts[1] == "gov" || parts[1] == "iso" || len(parts[1]) == 4 && strings.HasPrefix(parts[1], "iso") && isLower(parts[1])
		if !special {
			return false
		}
		parts = append(parts[:1:1], parts[2:]...)
	}
	return len(parts) == 3 && len(parts[0]) == 2 && isLower(parts[0]) && isLower(parts[1]) && len(parts[2]) == 1 && isDigits(parts[2])
}

func isLower(s string) bool {
	for i := 0; i < len(s); i++ {
		if s[i] < 'a' || s[i] > 'z' {
			return false
		}
	}
	return s != ""
}

// maxPlainName is the longest function name on create.
const maxPlainName = 64

var errQualifierMismatch = &lambdad.Error{Code: "InvalidParameterValueException",
	Message: "The derived qualifier from the function name does not match the specified qualifier."}

// resolveRef fills in what the caller left out from the scope of the request, and
// merges the qualifier in the name with the one beside it.
func resolveRef(c *call, name string, qualifier *string) (functionRef, error) {
	ref, ok := parseFunctionRef(name)
	if !ok { // validation has let it pass, so this is a name that no function has
		return functionRef{}, functionNotFound(functionRef{c.Identity.Account, c.Region, name, ""})
	}
	if qualifier != nil && *qualifier != "" {
		if ref.qualifier != "" && ref.qualifier != *qualifier {
			return ref, errQualifierMismatch
		}
		ref.qualifier = *qualifier
	}
	if ref.region == "" {
		ref.region = c.Region
	}
	if ref.region != c.Region {
		return ref, lambdad.Errorf("ResourceNotFoundException",
			"Functions from '%s' are not reachable in this region ('%s')", ref.region, c.Region)
	}
	if ref.account == "" {
		ref.account = c.Identity.Account
	}
	if ref.account != c.Identity.Account {
		if c.Operation == "CreateFunction" {
			return ref, &lambdad.Error{Code: "AccessDeniedException"}
		}
		return ref, c.AuthorizeForeign(ref.arn())
	}
	return ref, nil
}

// arn is the function's ARN, with the qualifier if there is one.
func (r functionRef) arn() string {
	return lambdad.FunctionARN(r.account, r.region, r.name, r.qualifier)
}

// unqualified is the function itself.
func (r functionRef) unqualified() functionRef {
	r.qualifier = ""
	return r
}

func functionNotFound(ref functionRef) error {
	return &lambdad.Error{Code: "ResourceNotFoundException", Message: "Function not found: " + ref.arn()}
}

// A layerRef names a layer or a version of one.
type layerRef struct {
	account, region, name string
	version               int64 // 0: the layer
}

func (r layerRef) arn() string { return lambdad.LayerARN(r.account, r.region, r.name, "") }

func (r layerRef) versionARN() string {
	return lambdad.LayerARN(r.account, r.region, r.name, strconv.FormatInt(r.version, 10))
}

var layerARNPattern = regexp.MustCompile(`\Aarn:[a-zA-Z0-9-]+:lambda:([a-zA-Z0-9-]+):(\d{12}):layer:([a-zA-Z0-9-_]+)(?::([0-9]+))?\z`)

// parseLayerRef reads a layer's name, ARN or version ARN. Parts not written are
// taken from the request.
func parseLayerRef(c *call, s string) (layerRef, bool) {
	if isWord(s) {
		return layerRef{account: c.Identity.Account, region: c.Region, name: s}, true
	}
	m := layerARNPattern.FindStringSubmatch(s)
	if m == nil {
		return layerRef{}, false
	}
	ref := layerRef{region: m[1], account: m[2], name: m[3]}
	if m[4] != "" {
		n, err := strconv.ParseInt(m[4], 10, 64)
		if err != nil {
			return layerRef{}, false
		}
		ref.version = n
	}
	return ref, true
}
