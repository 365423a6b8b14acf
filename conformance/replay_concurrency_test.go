package conformance

import "net/url"

// reserve is PutFunctionConcurrency.
func reserve(name string, n any) request {
	return request{method: "PUT", path: "/2017-10-31/functions/" + url.PathEscape(name) + "/concurrency", body: obj{"ReservedConcurrentExecutions": n}}
}

// provision is an operation on the provisioned concurrency of "fn"; n is for PUT.
func provision(method, name, qualifier string, n any) request {
	r := request{method: method, path: "/2019-09-30/functions/" + name + "/provisioned-concurrency", vars: map[string]string{"function": "fn"}}
	if qualifier != "" {
		r.query = url.Values{"Qualifier": {qualifier}}
	}
	if method == "PUT" {
		r.body = obj{"ProvisionedConcurrentExecutions": n}
	}
	return r
}

// provisioning provokes with a published function.
func provisioning(method, name, qualifier string, n any) func(*lab) request {
	return func(l *lab) request {
		l.publish("fn", 1)
		return provision(method, name, qualifier, n)
	}
}

// alias makes the alias "live" of version 1.
func (l *lab) alias() {
	l.Helper()
	l.must(region, request{method: "POST", path: functionsPath + "/fn/aliases", body: obj{"Name": "live", "FunctionVersion": "1"}})
}

// overlap has all of what is reserved provisioned.
func overlap(r request) func(*lab) request {
	return func(l *lab) request {
		l.publish("fn", 2)
		l.must(region, reserve("fn", 2))
		l.must(region, provision("PUT", "fn", "1", 2))
		return r
	}
}

// stopped makes a request of a function that has no concurrency.
func stopped(r request) func(*lab) request {
	return func(l *lab) request {
		l.function("fn")
		l.must(region, reserve("fn", 0))
		return r
	}
}

const (
	provisionedExceptions = "ProvisionedConcurrencyConfig: provisioned concurrency exceptions / "
	minUnreserved         = "min_unreserved_concurrency"
)

var concurrencyProvocations = map[string]func(*lab) request{
	"Invoke: lambda concurrency block / invoke latest first exc": func(l *lab) request {
		return overlap(on("Invoke", "fn", "$LATEST"))(l)
	},
	"Invoke: lambda concurrency block / invoke latest second exc": func(l *lab) request {
		r := overlap(on("Invoke", "fn", "$LATEST"))(l)
		l.do(region, r)
		return r
	},
	"Invoke: reserved concurrency / exc no cap requestresponse":                            stopped(on("Invoke", "fn", "")),
	"Invoke: reserved concurrency async queue / too many requests exc":                     stopped(on("Invoke", "fn", "")),
	"Invoke: reserved provisioned overlap / reserved equals provisioned latest invoke exc": overlap(on("Invoke", "fn", "$LATEST")),

	"PutFunctionConcurrency: reserved provisioned overlap / reserved lower than provisioned exc": overlap(reserve("fn", 1)),
	"PutFunctionConcurrency: function concurrency limits / put function concurrency account limit exceeded": func(l *lab) request {
		l.function("fn")
		return with(reserve("fn", 1001), minUnreserved, "100")
	},
	"PutFunctionConcurrency: function concurrency limits / put function concurrency below unreserved min value": func(l *lab) request {
		l.function("fn")
		l.function("other")
		l.must(region, reserve("other", 400))
		return with(reserve("fn", 501), minUnreserved, "100")
	},
	"PutFunctionConcurrency: function concurrency exceptions / put function concurrency with qualified arn": func(l *lab) request {
		l.publish("fn", 1)
		return reserve(arnPrefix+"function:fn:1", 0)
	},
	"PutFunctionConcurrency: function concurrency exceptions / put function concurrency with function name doesnotexist and invalid concurrency": func(*lab) request {
		return reserve("doesnotexist", 5000)
	},
	"PutFunctionConcurrency: function concurrency exceptions / put function concurrency with function name doesnotexist": func(*lab) request {
		return reserve("doesnotexist", 1)
	},

	"Put" + provisionedExceptions + "put provisioned latest":                                                               provisioning("PUT", "fn", "$LATEST", 1),
	"Put" + provisionedExceptions + "put provisioned qualifier doesnotexist":                                               provisioning("PUT", "fn", "doesnotexist", 1),
	"Put" + provisionedExceptions + "put provisioned version doesnotexist":                                                 provisioning("PUT", "fn", "10", 1),
	"Put" + provisionedExceptions + "put provisioned functionname doesnotexist alias":                                      provisioning("PUT", "doesnotexist", "noalias", 1),
	"Put" + provisionedExceptions + "put provisioned functionname doesnotexist version":                                    provisioning("PUT", "doesnotexist", "1", 1),
	"Put" + provisionedExceptions + "put provisioned invalid param 0":                                                      provisioning("PUT", "fn", "1", 0),
	"PutProvisionedConcurrencyConfig: reserved provisioned overlap / reserved equals provisioned another provisioned exc":  overlap(provision("PUT", "fn", "2", 1)),
	"PutProvisionedConcurrencyConfig: reserved provisioned overlap / reserved equals provisioned increase provisioned exc": overlap(provision("PUT", "fn", "1", 3)),
	"PutProvisionedConcurrencyConfig: provisioned concurrency limits / put provisioned concurrency below unreserved min value": func(l *lab) request {
		return with(provisioning("PUT", "fn", "1", 901)(l), minUnreserved, "100")
	},
	"PutProvisionedConcurrencyConfig: provisioned concurrency limits / put provisioned concurrency account limit exceeded": func(l *lab) request {
		return with(provisioning("PUT", "fn", "1", 1001)(l), "unreserved_concurrency", "1000")
	},
	"PutProvisionedConcurrencyConfig: lambda provisioned lifecycle / put provisioned on alias versionconflict": func(l *lab) request {
		l.publish("fn", 1)
		l.alias()
		l.must(region, provision("PUT", "fn", "1", 1))
		return provision("PUT", "fn", "live", 1)
	},
	"PutProvisionedConcurrencyConfig: lambda provisioned lifecycle / put provisioned on version conflict": func(l *lab) request {
		l.publish("fn", 1)
		l.alias()
		l.must(region, provision("PUT", "fn", "live", 1))
		return provision("PUT", "fn", "1", 1)
	},

	"Get" + provisionedExceptions + "get provisioned latest":                    provisioning("GET", "fn", "$LATEST", nil),
	"Get" + provisionedExceptions + "get provisioned config doesnotexist":       provisioning("GET", "fn", "1", nil),
	"Get" + provisionedExceptions + "get provisioned qualifier doesnotexist":    provisioning("GET", "fn", "noalias", nil),
	"Get" + provisionedExceptions + "get provisioned functionname doesnotexist": provisioning("GET", "doesnotexist", "noalias", nil),
	"Get" + provisionedExceptions + "get provisioned version doesnotexist":      provisioning("GET", "fn", "10", nil),
	"GetProvisionedConcurrencyConfig: init code of the version fails while environments are being allocated": func(l *lab) request {
		l.publish("fn", 1)
		l.must(region, provision("PUT", "fn", "1", 1))
		l.mu.Lock()
		l.initFails = true
		l.mu.Unlock()
		return provision("GET", "fn", "1", nil)
	},
	"GetProvisionedConcurrencyConfig: lambda provisioned concurrency moves with alias / provisioned concurrency notfound": func(l *lab) request {
		l.publish("fn", 1)
		l.alias()
		l.must(region, provision("PUT", "fn", "live", 1))
		return provision("GET", "fn", "1", nil)
	},
	"GetProvisionedConcurrencyConfig: lambda provisioned lifecycle / get provisioned version postdelete": func(l *lab) request {
		l.publish("fn", 1)
		l.must(region, provision("PUT", "fn", "1", 1))
		l.must(region, provision("DELETE", "fn", "1", nil))
		return provision("GET", "fn", "1", nil)
	},
	"GetProvisionedConcurrencyConfig: lambda provisioned lifecycle / get provisioned alias postaliasdelete": func(l *lab) request {
		l.publish("fn", 1)
		l.alias()
		l.must(region, provision("PUT", "fn", "live", 1))
		l.must(region, request{method: "DELETE", path: functionsPath + "/fn/aliases/live"})
		return with(provision("GET", "fn", "live", nil), "alias-name", "live")
	},

	"Delete" + provisionedExceptions + "delete provisioned latest":                    provisioning("DELETE", "fn", "$LATEST", nil),
	"Delete" + provisionedExceptions + "delete provisioned qualifier doesnotexist":    provisioning("DELETE", "fn", "noalias", nil),
	"Delete" + provisionedExceptions + "delete provisioned version doesnotexist":      provisioning("DELETE", "fn", "10", nil),
	"Delete" + provisionedExceptions + "delete provisioned functionname doesnotexist": provisioning("DELETE", "doesnotexist", "1", nil),
	"ListProvisionedConcurrencyConfigs: provisioned concurrency exceptions / list provisioned functionname doesnotexist": func(*lab) request {
		return request{method: "GET", path: "/2019-09-30/functions/doesnotexist/provisioned-concurrency", query: url.Values{"List": {"ALL"}}}
	},
}
