package aws

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/xml"
	"maps"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/lambdad/lambdad"
)

// The query protocol: requests are forms whose keys are paths to members, answers
// are XML. Names come from the json tags of generated types; a tag query:"name" or
// query:"name,flattened" says where a model differs.

// A param is what a form says about one path.
type param struct {
	value    string
	set      bool
	children map[string]*param
}

func (p *param) child(name string) *param {
	if p.children == nil {
		p.children = map[string]*param{}
	}
	c := p.children[name]
	if c == nil {
		c = &param{}
		p.children[name] = c
	}
	return c
}

// maxPath is how many parts of a key are looked at; no model is that deep.
const maxPath = 32

// decodeForm reads a form into in, a pointer to a generated type.
func decodeForm(form url.Values, in any) error {
	var root param
	for key, values := range form {
		p, n := &root, 0
		for part := range strings.SplitSeq(key, ".") {
			if n++; n > maxPath {
				return malformedParam(key, "is nested too deep")
			}
			p = p.child(part)
		}
		p.value, p.set = values[len(values)-1], true
	}
	return decodeStruct(&root, reflect.ValueOf(in).Elem(), "")
}

func malformedParam(path, what string) error {
	return lambdad.Errorf("MalformedInput", "The parameter %s %s.", path, what)
}

func decodeStruct(p *param, v reflect.Value, path string) error {
	for i := range v.NumField() {
		name, flattened := memberName(v.Type().Field(i))
		c := p.children[name]
		if c == nil || name == "" {
			continue
		}
		if err := decodeParam(c, v.Field(i), path+name, flattened); err != nil {
			return err
		}
	}
	return nil
}

// memberName is a field's name in the query protocol, "" for none.
func memberName(f reflect.StructField) (name string, flattened bool) {
	tag, ok := f.Tag.Lookup("query")
	if !ok {
		tag = f.Tag.Get("json")
	}
	name, options, _ := strings.Cut(tag, ",")
	if name == "-" {
		name = ""
	}
	return name, options == "flattened"
}

func decodeParam(p *param, v reflect.Value, path string, flattened bool) error {
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return decodeParam(p, v.Elem(), path, flattened)
	case reflect.Struct:
		if t, ok := v.Addr().Interface().(*Timestamp); ok {
			at, err := time.Parse(time.RFC3339Nano, p.value)
			if err != nil {
				return malformedParam(path, "is not a time in ISO 8601: "+strconv.Quote(p.value))
			}
			t.Time = at.UTC()
			return nil
		}
		return decodeStruct(p, v, path+".")
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b, err := base64.StdEncoding.DecodeString(p.value)
			if err != nil {
				return malformedParam(path, "is not base64")
			}
			v.SetBytes(b)
			return nil
		}
		return decodeList(p, v, path, flattened)
	case reflect.Map:
		return decodeMap(p, v, path, flattened)
	}
	if !p.set || p.children != nil {
		return malformedParam(path, "is not a single value")
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(p.value)
	case reflect.Int64:
		n, err := strconv.ParseInt(p.value, 10, 64)
		if err != nil {
			return malformedParam(path, "is not an integer: "+strconv.Quote(p.value))
		}
		v.SetInt(n)
	case reflect.Float64:
		n, err := strconv.ParseFloat(p.value, 64)
		if err != nil {
			return malformedParam(path, "is not a number: "+strconv.Quote(p.value))
		}
		v.SetFloat(n)
	case reflect.Bool:
		switch {
		case strings.EqualFold(p.value, "true"):
			v.SetBool(true)
		case strings.EqualFold(p.value, "false"):
			v.SetBool(false)
		default:
			return malformedParam(path, "is neither true nor false: "+strconv.Quote(p.value))
		}
	}
	return nil
}

// elements returns the elements of a list or map in the order of their numbers.
func elements(p *param, path, member string, flattened bool) ([]*param, error) {
	if !flattened {
		if p = p.children[member]; p == nil {
			return nil, nil // an empty list is sent as the bare name
		}
	}
	numbers := make(map[int]*param, len(p.children))
	for k, c := range p.children {
		n, err := strconv.Atoi(k)
		if err != nil || n < 1 || strconv.Itoa(n) != k {
			return nil, malformedParam(path, "has an element that is not counted from 1: "+strconv.Quote(k))
		}
		numbers[n] = c
	}
	list := make([]*param, 0, len(numbers))
	for _, n := range slices.Sorted(maps.Keys(numbers)) {
		list = append(list, numbers[n])
	}
	return list, nil
}

func decodeList(p *param, v reflect.Value, path string, flattened bool) error {
	list, err := elements(p, path, "member", flattened)
	if err != nil {
		return err
	}
	v.Set(reflect.MakeSlice(v.Type(), len(list), len(list)))
	for i, c := range list {
		at := path + ".member." + strconv.Itoa(i+1)
		if flattened {
			at = path + "." + strconv.Itoa(i+1)
		}
		if err := decodeParam(c, v.Index(i), at, false); err != nil {
			return err
		}
	}
	return nil
}

func decodeMap(p *param, v reflect.Value, path string, flattened bool) error {
	list, err := elements(p, path, "entry", flattened)
	if err != nil {
		return err
	}
	v.Set(reflect.MakeMapWithSize(v.Type(), len(list)))
	for _, c := range list {
		key, value := c.children["key"], c.children["value"]
		if key == nil || value == nil {
			return malformedParam(path, "has an entry without key or value")
		}
		e := reflect.New(v.Type().Elem()).Elem()
		if err := decodeParam(value, e, path+".value", false); err != nil {
			return err
		}
		v.SetMapIndex(reflect.ValueOf(key.value), e)
	}
	return nil
}

// encodeXML is the answer to a query request: out is a pointer to a generated
// type, or nil for an operation without result.
func encodeXML(r *Request, out any) []byte {
	var b bytes.Buffer
	api, _ := r.Route.(*API)
	b.WriteString("<" + r.Operation + `Response xmlns="` + api.Namespace + `">`)
	if out != nil {
		element(&b, r.Operation+"Result", reflect.ValueOf(out), false)
	}
	b.WriteString("<ResponseMetadata><RequestId>" + r.RequestID + "</RequestId></ResponseMetadata></" + r.Operation + "Response>\n")
	return b.Bytes()
}

// element writes v as an element; what is absent is left out.
func element(b *bytes.Buffer, name string, v reflect.Value, flattened bool) {
	switch v.Kind() {
	case reflect.Pointer, reflect.Slice, reflect.Map:
		if v.IsNil() {
			return
		}
	}
	if v.Kind() == reflect.Pointer {
		v = v.Elem()
	}
	if flattened && v.Kind() == reflect.Slice {
		for i := range v.Len() {
			element(b, name, v.Index(i), false)
		}
		return
	}
	b.WriteString("<" + name + ">")
	switch v.Kind() {
	case reflect.Struct:
		if t, ok := v.Interface().(Timestamp); ok {
			b.WriteString(t.UTC().Truncate(time.Millisecond).Format("2006-01-02T15:04:05.999Z"))
			break
		}
		for i := range v.NumField() {
			if name, flattened := memberName(v.Type().Field(i)); name != "" {
				element(b, name, v.Field(i), flattened)
			}
		}
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			b.WriteString(base64.StdEncoding.EncodeToString(v.Bytes()))
			break
		}
		for i := range v.Len() {
			element(b, "member", v.Index(i), false)
		}
	case reflect.Map:
		keys := v.MapKeys()
		slices.SortFunc(keys, func(x, y reflect.Value) int { return cmp.Compare(x.String(), y.String()) })
		for _, k := range keys {
			b.WriteString("<entry>")
			element(b, "key", k, false)
			element(b, "value", v.MapIndex(k), false)
			b.WriteString("</entry>")
		}
	case reflect.String:
		_ = xml.EscapeText(b, []byte(v.String())) // a buffer takes everything
	case reflect.Int64:
		b.WriteString(strconv.FormatInt(v.Int(), 10))
	case reflect.Float64:
		b.WriteString(strconv.FormatFloat(v.Float(), 'G', -1, 64))
	case reflect.Bool:
		b.WriteString(strconv.FormatBool(v.Bool()))
	}
	b.WriteString("</" + name + ">")
}
