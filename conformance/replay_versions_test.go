package conformance

import "strings"

// publish makes a function with a number of versions.
func (l *lab) publish(name string, versions int) {
	l.Helper()
	l.function(name)
	for i := range versions {
		l.must(region, request{method: "POST", path: functionsPath + "/" + name + "/versions", body: obj{}})
		if i+1 < versions {
			l.must(region, request{method: "PUT", path: functionsPath + "/" + name + "/configuration", body: obj{"Timeout": 10 + i}})
			l.ready(name)
		}
	}
}

// aliasWith provokes an error of CreateAlias on a function with two versions.
func aliasWith(function string, body obj) func(*lab) request {
	return func(l *lab) request {
		l.publish("fn", 2)
		return with(request{method: "POST", path: functionsPath + "/" + function + "/aliases", body: body}, "function", "fn")
	}
}

func weights(version string, weight any) obj {
	return obj{"AdditionalVersionWeights": obj{version: weight}}
}

func publishWith(body obj) func(*lab) request {
	return func(l *lab) request {
		l.function("fn")
		f := l.must(region, on("GetFunctionConfiguration", "fn", ""))
		return with(request{method: "POST", path: functionsPath + "/fn/versions", body: body}, "code-sha256:1", f["CodeSha256"].(string))
	}
}

const routingSeries = "CreateAlias: notfound and invalid routingconfigs / "

var versionProvocations = map[string]func(*lab) request{
	routingSeries + "target version exc version latest":         aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "$LATEST", "RoutingConfig": weights("1", 0.5)}),
	routingSeries + "routing config exc sameversion":            aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": weights("1", 0.5)}),
	routingSeries + "routing config exc toomany":                aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": obj{"AdditionalVersionWeights": obj{"1": 0.8, "2": 0.2}}}),
	routingSeries + "routing config exc fn doesnotexist":        aliasWith("fn-unknown", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": weights("2", 0.5)}),
	routingSeries + "routing config exc version doesnotexist":   aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": weights("10", 0.5)}),
	routingSeries + "target version doesnotexist":               aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "10", "RoutingConfig": weights("2", 0.5)}),
	routingSeries + "routing config exc version latest":         aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": weights("$LATEST", 0.5)}),
	routingSeries + "routing config exc subzero":                aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": weights("2", -1)}),
	routingSeries + "routing config exc toohigh":                aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": weights("2", 2)}),
	"CreateAlias: alias naming / create alias number exception": aliasWith("fn", obj{"Name": "2024", "FunctionVersion": "1", "Description": "custom-alias"}),
	routingSeries + "routing config exc already exist": func(l *lab) request {
		r := aliasWith("fn", obj{"Name": "custom", "FunctionVersion": "1", "RoutingConfig": weights("2", 0.5)})(l)
		l.must(region, r)
		return r
	},
	"GetAlias: notfound and invalid routingconfigs / alias does not exist esc": func(l *lab) request {
		l.publish("fn", 1)
		return with(request{method: "GET", path: functionsPath + "/fn/aliases/non-existent"}, "function", "fn")
	},
	"UpdateAlias: function revisions version and alias / update alias revision exception": func(l *lab) request {
		l.publish("fn", 1)
		l.must(region, request{method: "POST", path: functionsPath + "/fn/aliases", body: obj{"Name": "live", "FunctionVersion": "1"}})
		return request{method: "PUT", path: functionsPath + "/fn/aliases/live", body: obj{"RevisionId": "wrong"}}
	},
	"UpdateAlias: non existent alias update / update alias response": func(l *lab) request {
		l.function("fn")
		return with(request{method: "PUT", path: functionsPath + "/fn/aliases/non-existent", body: obj{"Description": "x"}}, "function", "fn")
	},

	"PublishVersion: lambda image versions / invalid sha publish": func(l *lab) request {
		l.image("fn")
		f := l.must(region, on("GetFunctionConfiguration", "fn", ""))
		return with(request{method: "POST", path: functionsPath + "/fn/versions", body: obj{
			"Description": "Second version description :)", "CodeSha256": strings.Repeat("a", 64)}}, "code-sha256:1", f["CodeSha256"].(string))
	},
	"PublishVersion: publish with wrong sha256 / publish wrong sha256 exc":                      publishWith(obj{"CodeSha256": "somenonexistentsha256"}),
	"PublishVersion: function revisions version and alias / publish version revision exception": publishWith(obj{"RevisionId": "wrong"}),
	"PublishVersion: publish with wrong revisionid / publish wrong revisionid exc":              publishWith(obj{"RevisionId": "wrong"}),
}
