package conformance

import (
	"net/url"
	"strconv"
	"strings"
)

// permit addresses AddPermission to a function.
func permit(function, qualifier string, change obj) request {
	r := on("GetFunction", function, qualifier)
	r.method, r.path = "POST", r.path+"/policy"
	r.body = obj{"StatementId": "s3", "Action": "lambda:InvokeFunction", "Principal": "s3.amazonaws.com"}
	for k, v := range change {
		r.body[k] = v
	}
	return with(r, "function", "fn")
}

func forbid(function, sid, qualifier string) request {
	r := on("GetFunction", function, qualifier)
	r.method, r.path = "DELETE", r.path+"/policy/"+sid
	return with(r, "function", "fn")
}

func policyOf(function, qualifier string) request {
	r := on("GetFunction", function, qualifier)
	r.path += "/policy"
	return r
}

// permission provokes with a function fn with a version 1, an alias live and the
// statement s3 on the function.
func permission(r request) func(*lab) request {
	return func(l *lab) request {
		l.publish("fn", 1)
		l.must(region, request{method: "POST", path: functionsPath + "/fn/aliases", body: obj{"Name": "live", "FunctionVersion": "1"}})
		l.must(region, permit("fn", "", nil))
		return r
	}
}

// layerPolicy provokes with a layer l that has a version 1 with the statement s1.
func layerPolicy(method, path string, change obj) func(*lab) request {
	return func(l *lab) request {
		l.layer(region, "l")
		body := obj{"StatementId": "s1", "Action": "lambda:GetLayerVersion", "Principal": "*"}
		l.must(region, request{method: "POST", path: layersPath + "/l/versions/1/policy", body: body})
		r := with(request{method: method, path: layersPath + path, body: body, query: url.Values{}}, "name:1", "l")
		for k, v := range change {
			body[k] = v
		}
		if id, ok := body["RevisionId"].(string); ok {
			delete(body, "RevisionId")
			r.query.Set("RevisionId", id)
		}
		if method != "POST" {
			r.body = nil
		}
		return r
	}
}

const (
	tagsPath    = "/2017-03-31/tags/"
	signingPath = "/2020-04-22/code-signing-configs"
	noSigning   = "arn:aws:lambda:" + region + ":" + account + ":code-signing-config:csc-00000000000000000"
	mappingID   = "00000000-0000-0000-0000-000000000000"
)

// tag addresses a tag operation to the function fn or what else arn names.
func tag(operation, arn string, tags any) request {
	r := with(request{path: tagsPath + url.PathEscape(arn), query: url.Values{}}, "function", "fn")
	r.path = strings.ReplaceAll(r.path, ":", "%3A")
	switch operation {
	case "ListTags":
		r.method = "GET"
	case "TagResource":
		r.method, r.body = "POST", obj{"Tags": tags}
	case "UntagResource":
		r.method = "DELETE"
		r.query.Set("tagKeys", "A")
	}
	return r
}

const fnARN = "arn:aws:lambda:" + region + ":" + account + ":function:fn"

func tagging(r request) func(*lab) request {
	return func(l *lab) request {
		l.publish("fn", 1)
		return r
	}
}

func many(n int) map[string]string {
	tags := map[string]string{}
	for i := range n {
		tags["k"+strconv.Itoa(i)] = "v"
	}
	return tags
}

// signing makes a code signing configuration and returns its ARN.
func (l *lab) signing() string {
	l.Helper()
	v := l.must(region, request{method: "POST", path: signingPath, body: obj{
		"AllowedPublishers": obj{"SigningProfileVersionArns": []string{"arn:aws:signer:" + region + ":" + account + ":/signing-profiles/test"}}}})
	return v["CodeSigningConfig"].(obj)["CodeSigningConfigArn"].(string)
}

func signingWith(method, path string, body obj) func(*lab) request {
	return func(l *lab) request {
		l.function("fn")
		return with(request{method: method, path: path, body: body}, "csc_arn_invalid", noSigning)
	}
}

func functionSigning(method, function string, body obj) func(*lab) request {
	return signingWith(method, "/2020-06-30/functions/"+function+"/code-signing-config", body)
}

var escapedSigning = signingPath + "/" + strings.ReplaceAll(noSigning, ":", "%3A")

var policyProvocations = map[string]func(*lab) request{
	"AddPermission: permission exceptions / add permission fn qualifier mismatch":              permission(permit("fn:alias-not-42", "42", nil)),
	"AddPermission: permission exceptions / add permission principal invalid":                  permission(permit("fn", "", obj{"StatementId": "lambda", "Principal": "invalid.nonaws.com"})),
	"AddPermission: permission exceptions / add permission fn qualifier latest":                permission(permit("fn:$LATEST", "$LATEST", nil)),
	"AddPermission: lambda permission revisions / add permission revision id doesnotmatch":     permission(permit("fn", "", obj{"StatementId": "s4", "RevisionId": "wrong"})),
	"AddPermission: function revisions permissions / add permission revision exception":        permission(permit("fn", "", obj{"StatementId": "s4", "RevisionId": "wrong"})),
	"AddPermission: lambda permission fn versioning / add permission alias revision exception": permission(permit("fn", "live", obj{"RevisionId": "wrong"})),
	"AddPermission: permission exceptions / add permission conflicting statement id":           permission(permit("fn", "", nil)),
	"AddPermission: permission exceptions / add permission fn alias doesnotexist":              permission(permit("fn:alias-doesnotexist", "", nil)),
	"AddPermission: permission exceptions / add permission fn version doesnotexist":            permission(permit("fn", "42", nil)),
	"AddPermission: permission exceptions / add permission fn qualifier valid doesnotexist":    permission(permit("fn", "valid-with-$-but-doesnotexist", nil)),
	"AddPermission: permission exceptions / add permission fn doesnotexist":                    permission(permit("doesnotexist", "", nil)),
	"AddPermission: permission exceptions / add permission invalid statement id":               permission(permit("fn", "", obj{"StatementId": "example.com"})),
	"AddPermission: permission exceptions / add permission fn qualifier invalid":               permission(permit("fn", "invalid-qualifier-with-?-char", nil)),

	"GetPolicy: lambda permission fn versioning / get policy after publishing new version": permission(policyOf("fn", "1")),
	"GetPolicy: lambda permission versioning / get policy after publishing new version":    permission(policyOf("fn", "1")),
	"GetPolicy: permission exceptions / get policy fn doesnotexist":                        permission(policyOf("doesnotexist", "")),
	"GetPolicy: permission exceptions / get policy fn version doesnotexist":                permission(policyOf("fn", "42")),
	"GetPolicy: remove multi permissions / get policy exception removed all": func(l *lab) request {
		r := permission(policyOf("fn", ""))(l)
		l.must(region, forbid("fn", "s3", ""))
		return r
	},

	"RemovePermission: lambda permission revisions / remove permission fn revision id doesnotmatch": func(l *lab) request {
		r := permission(forbid("fn", "s3", ""))(l)
		r.query.Set("RevisionId", "wrong")
		return r
	},
	"RemovePermission: permission exceptions / remove permission fn alias doesnotexist":        permission(forbid("fn:alias-doesnotexist", "s3", "")),
	"RemovePermission: permission exceptions / remove permission fn doesnotexist":              permission(forbid("doesnotexist", "s3", "")),
	"RemovePermission: permission exceptions / remove permission policy doesnotexist":          permission(forbid("fn", "s3", "live")),
	"RemovePermission: remove multi permissions / remove permission exception nonexisting sid": permission(forbid("fn", "non-existent", "")),

	"AddLayerVersionPermission: layer policy exceptions / layer permission wrong revision":                layerPolicy("POST", "/l/versions/1/policy", obj{"StatementId": "s2", "RevisionId": "wrong"}),
	"AddLayerVersionPermission: layer policy exceptions / layer permission duplicate statement":           layerPolicy("POST", "/l/versions/1/policy", nil),
	"AddLayerVersionPermission: layer policy exceptions / layer permission layername doesnotexist add":    layerPolicy("POST", "/l-doesnotexist/versions/1/policy", nil),
	"AddLayerVersionPermission: layer policy exceptions / layer permission layerversion doesnotexist add": layerPolicy("POST", "/l/versions/2/policy", nil),
	"AddLayerVersionPermission: layer policy exceptions / layer permission action invalid":                layerPolicy("POST", "/l/versions/1/policy", obj{"Action": "*"}),
	"GetLayerVersionPolicy: layer policy exceptions / layer permission layername doesnotexist get":        layerPolicy("GET", "/l-doesnotexist/versions/1/policy", nil),
	"GetLayerVersionPolicy: layer policy exceptions / layer permission layerversion doesnotexist get":     layerPolicy("GET", "/l/versions/2/policy", nil),
	"GetLayerVersionPolicy: layer policy exceptions / layer permission nopolicy get": func(l *lab) request {
		l.layer(region, "l")
		return request{method: "GET", path: layersPath + "/l/versions/1/policy"}
	},
	"RemoveLayerVersionPermission: layer policy exceptions / layer permission wrong revision remove":            layerPolicy("DELETE", "/l/versions/1/policy/s1", obj{"RevisionId": "wrong"}),
	"RemoveLayerVersionPermission: layer policy exceptions / layer permission layername doesnotexist remove":    layerPolicy("DELETE", "/l-doesnotexist/versions/1/policy/s1", nil),
	"RemoveLayerVersionPermission: layer policy exceptions / layer permission layerversion doesnotexist remove": layerPolicy("DELETE", "/l/versions/2/policy/s1", nil),
	"RemoveLayerVersionPermission: layer policy exceptions / layer permission statementid doesnotexist remove":  layerPolicy("DELETE", "/l/versions/1/policy/doesnotexist", nil),

	"ListTags: tag exceptions[lambda function] / aliased arn exception": tagging(tag("ListTags", fnARN+":alias", nil)),
	"ListTags: tag lifecycle / list tags postdelete": func(l *lab) request {
		l.function("fn")
		l.must(region, on("DeleteFunction", "fn", ""))
		return tag("ListTags", fnARN, nil)
	},
	"TagResource: tag exceptions / tag empty tags":       tagging(tag("TagResource", fnARN, obj{})),
	"TagResource: tag limits / tag lambda too many tags": tagging(tag("TagResource", fnARN, many(51))),
	"TagResource: tag limits / tag lambda too many tags additional": func(l *lab) request {
		l.function("fn")
		l.must(region, tag("TagResource", fnARN, many(50)))
		return tag("TagResource", fnARN, obj{"a_key": "a_value"})
	},
	"TagResource: tag exceptions / tag lambda qualifier doesnotexist": tagging(tag("TagResource", fnARN+":v1", obj{"key_a": "value_a"})),
	"TagResource: tag versions / tag resource exception":              tagging(tag("TagResource", fnARN+":1", obj{"key_b": "value_b"})),
	"TagResource: tag versions / tag resource latest exception":       tagging(tag("TagResource", fnARN+":$LATEST", obj{"key_b": "value_b"})),
	"TagResource: tag exceptions / tag lambda doesnotexist":           tagging(tag("TagResource", arnPrefix+"function:doesnotexist", obj{"key_a": "value_a"})),
	"TagResource: tag exceptions / tag lambda invalidarn":             tagging(tag("TagResource", "arn:aws:something", obj{"key_a": "value_a"})),
	"UntagResource: tag exceptions / untag empty keys": func(l *lab) request {
		r := tagging(tag("UntagResource", fnARN, nil))(l)
		r.query.Del("tagKeys")
		return r
	},

	"DeleteCodeSigningConfig: code signing not found excs / delete csc notfound":                           signingWith("DELETE", escapedSigning, nil),
	"GetCodeSigningConfig: code signing not found excs / get csc invalid":                                  signingWith("GET", escapedSigning, nil),
	"UpdateCodeSigningConfig: code signing not found excs / update csc invalid csc arn":                    signingWith("PUT", escapedSigning, obj{"Description": "new-description"}),
	"UpdateCodeSigningConfig: code signing not found excs / update csc noupdates":                          signingWith("PUT", escapedSigning, nil),
	"ListFunctionsByCodeSigningConfig: code signing not found excs / list functions by csc invalid cscarn": signingWith("GET", escapedSigning+"/functions", nil),
	"DeleteFunctionCodeSigningConfig: code signing not found excs / delete function csc fnnotfound":        functionSigning("DELETE", "csc-test-doesnotexist", nil),
	"GetFunctionCodeSigningConfig: code signing not found excs / get function csc nonexistingfn":           functionSigning("GET", "csc-test-doesnotexist", nil),
	"PutFunctionCodeSigningConfig: code signing not found excs / put function csc invalid both":            functionSigning("PUT", "csc-test-doesnotexist", obj{"CodeSigningConfigArn": noSigning}),
	"PutFunctionCodeSigningConfig: code signing not found excs / put function csc invalid csc arn":         functionSigning("PUT", "fn", obj{"CodeSigningConfigArn": noSigning}),
	"PutFunctionCodeSigningConfig: code signing not found excs / put function csc invalid fnname": func(l *lab) request {
		return functionSigning("PUT", "csc-test-doesnotexist", obj{"CodeSigningConfigArn": l.signing()})(l)
	},

	"PutFunctionRecursionConfig: put function recursion config invalid value / put recursion invalid value error": func(l *lab) request {
		l.function("fn")
		return request{method: "PUT", path: "/2024-08-31/functions/fn/recursion-config", body: obj{"RecursiveLoop": "InvalidValue"}}
	},
}

// taggedARN is the ARN of the recorded series "tag exceptions" and "tag
// nonexisting resource".
func taggedARN(series, detail string) (arn, name string, ok bool) {
	switch series {
	case "tag exceptions[lambda function]":
		arn, name = arnPrefix+"function:", "resource"
	case "tag exceptions[event source mapping]":
		arn, name = arnPrefix+"event-source-mapping:", mappingID
	case "tag exceptions[capacity provider]":
		arn, name = arnPrefix+"capacity-provider:", "resource"
	case "tag nonexisting resource":
		return arnPrefix + "function:fn", "fn", true
	default:
		return "", "", false
	}
	switch {
	case strings.HasPrefix(detail, "aliased arn"):
		return arn + name + ":alias", name, true
	case strings.HasPrefix(detail, "invalid arn"):
		return arnPrefix + "foobar:" + name, name, true
	}
	return arn + name, name, true
}
