package frontend

import (
	"encoding/binary"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxDepth is how deeply arrays and objects may be nested. It bounds the stack
// of checkJSON, which is a bit for each level.
const maxDepth = 10000

// What may come next, after white space.
type expect uint8

const (
	value      expect = iota
	firstValue        // or ]
	firstName         // or }
	name              // after a comma
	colon             // after a name
	commaOrEnd        // after a value in an array or object
	endOfText         // after the outermost value
	nothingYet        // at the beginning
)

const (
	anyToken = "(JSON String, Number, Array, Object or token 'null', 'true' or 'false')"
	anyValue = "expected a valid value " + anyToken
)

// checkJSON returns "" when b is one JSON value in UTF-8, and else what the
// service says of it: the words of the parser AWS uses, with line and column.
// It allocates nothing for valid text.
func checkJSON(b []byte) string {
	var nested [(maxDepth + 63) / 64]uint64 // 1: object
	depth, object := 0, false
	next := nothingYet
	for i := 0; ; {
		for i < len(b) && (b[i] == ' ' || b[i] == '\n' || b[i] == '\r' || b[i] == '\t') {
			i++
		}
		if i == len(b) {
			if next == endOfText {
				return ""
			}
			return unexpectedEnd(b, next, object)
		}
		c := b[i]
		switch next {
		case nothingYet, value, firstValue:
			switch {
			case c == '{' || c == '[':
				if depth == maxDepth {
					return fmt.Sprintf("Document nesting depth (%d) exceeds the maximum allowed (%d)", depth+1, maxDepth) + at(b, i+1)
				}
				object = c == '{'
				if bit := uint64(1) << (depth % 64); object {
					nested[depth/64] |= bit
				} else {
					nested[depth/64] &^= bit
				}
				depth++
				i++
				if next = firstValue; object {
					next = firstName
				}
				continue
			case c == ']' && next == firstValue:
				next = commaOrEnd
				continue
			}
			end, text := scanValue(b, i, depth == 0)
			if text != "" {
				return text
			}
			i = end
			if next = commaOrEnd; depth == 0 {
				next = endOfText
			}
		case firstName, name:
			switch {
			case c == '"':
				end, text := scanString(b, i+1, "name")
				if text != "" {
					return text
				}
				i, next = end, colon
			case c == '}' && next == firstName:
				next = commaOrEnd
			default:
				return unexpected(b, i, "was expecting double-quote to start field name")
			}
		case colon:
			if c != ':' {
				return unexpected(b, i, "was expecting a colon to separate field name and value")
			}
			i, next = i+1, value
		case commaOrEnd:
			switch {
			case c == ',':
				i++
				if next = value; object {
					next = name
				}
			case c == '}' && object || c == ']' && !object:
				i++
				if depth--; depth == 0 {
					next = endOfText
				} else {
					object = nested[(depth-1)/64]&(1<<((depth-1)%64)) != 0
				}
			case c == '}' || c == ']':
				open := openings(b[:i])
				kind, want := kindOf(object)
				return fmt.Sprintf("Unexpected close marker '%c': expected '%c' (for %s starting at %s)", c, want, kind, source(b, open[len(open)-1])) + at(b, i)
			default:
				kind, _ := kindOf(object)
				return unexpected(b, i, "was expecting comma to separate "+kind+" entries")
			}
		case endOfText:
			return trailing(b, i)
		}
	}
}

// scanValue passes over a string, number or word and returns its end.
func scanValue(b []byte, i int, outermost bool) (end int, text string) {
	switch c := b[i]; {
	case c == '"':
		return scanString(b, i+1, "string value")
	case c == '-' || '0' <= c && c <= '9':
		return scanNumber(b, i, outermost)
	default:
		for _, word := range [...]string{"true", "false", "null"} {
			if len(b)-i >= len(word) && string(b[i:i+len(word)]) == word && (len(b)-i == len(word) || !identifier(b[i+len(word):])) {
				return i + len(word), ""
			}
		}
		if !latinIdentifierStart(c) {
			return i, unexpected(b, i, anyValue)
		}
		return i, unrecognized(b, i)
	}
}

// unrecognized words a token that is no JSON.
func unrecognized(b []byte, i int) string {
	end := i + 1 // the first byte was taken as a character of its own
	token := []rune{rune(b[i])}
	for end < len(b) {
		r, size := utf8.DecodeRune(b[end:])
		if r == utf8.RuneError && size == 1 {
			return invalidUTF8(b, end)
		}
		end += size
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) && r != '_' && r != '$' {
			break // taken, too, before it was seen not to belong
		}
		if len(token) < 256 {
			token = append(token, r)
		}
	}
	return fmt.Sprintf("Unrecognized token '%s': was expecting %s", string(token), anyToken) + at(b, end)
}

func identifier(b []byte) bool {
	r, _ := utf8.DecodeRune(b)
	return r != utf8.RuneError && (unicode.IsLetter(r) || unicode.IsDigit(r) || r == '_' || r == '$')
}

// latinIdentifierStart takes a byte for a character, as AWS's parser does there.
func latinIdentifierStart(c byte) bool {
	r := rune(c)
	return unicode.IsLetter(r) || r == '_' || unicode.Is(unicode.Sc, r)
}

func scanNumber(b []byte, i int, outermost bool) (end int, text string) {
	digits := func() int {
		n := i
		for i < len(b) && '0' <= b[i] && b[i] <= '9' {
			i++
		}
		return i - n
	}
	missing := func(why string) (int, string) {
		if i == len(b) {
			return i, "Unexpected end-of-input in a Number value" + at(b, i)
		}
		return i, fmt.Sprintf("Unexpected character (%s) in numeric value: %s", character(b, i), why) + at(b, i)
	}
	if b[i] == '-' {
		i++
	}
	zero := i < len(b) && b[i] == '0'
	switch n := digits(); {
	case n == 0:
		return missing("expected digit (0-9) to follow minus sign, for valid numeric value")
	case zero && n > 1:
		return i, "Invalid numeric value: Leading zeroes not allowed" + at(b, i-n+1)
	}
	if i < len(b) && b[i] == '.' {
		i++
		if digits() == 0 {
			return missing("Decimal point not followed by a digit")
		}
	}
	if i < len(b) && (b[i] == 'e' || b[i] == 'E') {
		i++
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			i++
		}
		if digits() == 0 {
			return missing("Exponent indicator not followed by a digit")
		}
	}
	if outermost && i < len(b) && b[i] > ' ' {
		return i, unexpected(b, i, "Expected space separating root-level values")
	}
	return i, ""
}

const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// plain reports whether eight bytes are all ordinary ASCII: no quote, backslash,
// control character or byte above 0x7f.
func plain(w uint64) bool {
	quote, slash := w^('"'*ones), w^('\\'*ones)
	return (w|(w-' '*ones)|(quote-ones)|(slash-ones))&highs == 0
}

// scanString passes over a string that begins at i, after its quote.
func scanString(b []byte, i int, what string) (end int, text string) {
	for {
		for len(b)-i >= 8 && plain(binary.LittleEndian.Uint64(b[i:])) {
			i += 8
		}
		if i == len(b) {
			if what == "name" {
				return i, "Unexpected end-of-input: was expecting closing '\"' for name" + at(b, i)
			}
			return i, "Unexpected end-of-input: was expecting closing quote for a string value" + at(b, i)
		}
		switch c := b[i]; {
		case c == '"':
			return i + 1, ""
		case c == '\\':
			n, text := scanEscape(b, i+1)
			if text != "" {
				return n, text
			}
			i = n
		case c < ' ':
			return i, fmt.Sprintf("Illegal unquoted character (%s): has to be escaped using backslash to be included in %s", character(b, i), what) + at(b, i+1)
		case c < utf8.RuneSelf:
			i++
		default:
			r, size := utf8.DecodeRune(b[i:])
			if r == utf8.RuneError && size == 1 {
				return i, invalidUTF8(b, i)
			}
			i += size
		}
	}
}

func scanEscape(b []byte, i int) (end int, text string) {
	if i == len(b) {
		return i, "Unexpected end-of-input in character escape sequence" + at(b, i)
	}
	switch b[i] {
	case '"', '\\', '/', 'b', 'f', 'n', 'r', 't':
		return i + 1, ""
	case 'u':
		for n := 1; n <= 4; n++ {
			if i+n == len(b) {
				return i, "Unexpected end-of-input in character escape sequence" + at(b, i+n)
			}
			if c := b[i+n] | 0x20; (c < '0' || c > '9' || b[i+n] < '0') && (c < 'a' || c > 'f') {
				return i, unexpected(b, i+n, "expected a hex-digit for character escape sequence")
			}
		}
		return i + 5, ""
	}
	return i, "Unrecognized character escape " + character(b, i) + at(b, i+1)
}

// invalidUTF8 words the byte that makes the sequence at i invalid.
func invalidUTF8(b []byte, i int) string {
	c, need := b[i], 0
	switch {
	case c&0xe0 == 0xc0:
		need = 1
	case c&0xf0 == 0xe0:
		need = 2
	case c&0xf8 == 0xf0:
		need = 3
	default:
		return fmt.Sprintf("Invalid UTF-8 start byte 0x%x", c) + at(b, i+1)
	}
	for n := 1; n <= need; n++ {
		if i+n >= len(b) {
			return "Unexpected end-of-input in a character" + at(b, i+n)
		}
		if b[i+n]&0xc0 != 0x80 {
			return fmt.Sprintf("Invalid UTF-8 middle byte 0x%x", b[i+n]) + at(b, i+n+1)
		}
	}
	// Well-formed but overlong, a surrogate or beyond Unicode.
	return fmt.Sprintf("Invalid UTF-8 start byte 0x%x", c) + at(b, i+1)
}

// unexpected words a character that cannot stand at i.
func unexpected(b []byte, i int, why string) string {
	return fmt.Sprintf("Unexpected character (%s): %s", character(b, i), why) + at(b, i)
}

// character describes one: a byte where a token should begin, as AWS's parser
// does, even of a longer sequence.
func character(b []byte, i int) string {
	r := rune(b[i])
	if unicode.IsControl(r) {
		return fmt.Sprintf("(CTRL-CHAR, code %d)", r)
	}
	return fmt.Sprintf("'%c' (code %d)", r, r)
}

// unexpectedEnd words a text that stops where next was expected.
func unexpectedEnd(b []byte, next expect, object bool) string {
	kind, _ := kindOf(object)
	switch next {
	case nothingYet:
		return "No content to map due to end-of-input" + at(b, len(b))
	case value, name, colon:
		return "Unexpected end-of-input within/between " + kind + " entries" + at(b, len(b))
	}
	open := openings(b)
	return fmt.Sprintf("Unexpected end-of-input: expected close marker for %s (start marker at %s)", kind, source(b, open[len(open)-1])) + at(b, len(b))
}

// trailing words what follows a complete value.
func trailing(b []byte, i int) string {
	kind := "VALUE_NUMBER_INT"
	switch c := b[i]; {
	case c == '{':
		kind = "START_OBJECT"
	case c == '[':
		kind = "START_ARRAY"
	default:
		end, text := scanValue(b, i, true)
		if text != "" {
			return text
		}
		switch {
		case c == '"':
			kind = "VALUE_STRING"
		case c == 't' || c == 'f' || c == 'n':
			kind = "VALUE_" + strings.ToUpper(string(b[i:end]))
		case strings.ContainsAny(string(b[i:end]), ".eE"):
			kind = "VALUE_NUMBER_FLOAT"
		}
	}
	return fmt.Sprintf("Trailing token (of type %s) found after value (bound as `com.fasterxml.jackson.databind.JsonNode`): not allowed as per `DeserializationFeature.FAIL_ON_TRAILING_TOKENS`", kind) + at(b, i+1)
}

func kindOf(object bool) (kind string, end rune) {
	if object {
		return "Object", '}'
	}
	return "Array", ']'
}

// openings returns where the brackets begin that are open at the end of b, whose
// tokens are valid.
func openings(b []byte) []int {
	var open []int
	for i := 0; i < len(b); i++ {
		switch b[i] {
		case '{', '[':
			open = append(open, i)
		case '}', ']':
			open = open[:len(open)-1]
		case '"':
			end, _ := scanString(b, i+1, "")
			i = end - 1
		}
	}
	return open
}

// at is where a message points: line and column of offset i, from 1.
func at(b []byte, i int) string { return "\n at " + source(b, i) }

func source(b []byte, i int) string {
	line, column := 1, 1
	for _, c := range b[:min(i, len(b))] {
		if column++; c == '\n' {
			line, column = line+1, 1
		}
	}
	column += i - min(i, len(b))
	return fmt.Sprintf("[Source: REDACTED (`StreamReadFeature.INCLUDE_SOURCE_IN_LOCATION` disabled); line: %d, column: %d]", line, column)
}
