// Answers the cases of compare_test.go, one JSON object a line, with
// @cloud-copilot/iam-simulate, which is installed below NODE_MODULES.
import { createRequire } from 'node:module'
import { createInterface } from 'node:readline'
import { pathToFileURL } from 'node:url'

const require = createRequire(process.env.NODE_MODULES + '/x.js')
const { runSimulation } = await import(pathToFileURL(require.resolve('@cloud-copilot/iam-simulate')))
for await (const line of createInterface({ input: process.stdin })) {
  const c = JSON.parse(line)
  const contextVariables = {}
  for (const [k, v] of Object.entries(c.context)) contextVariables[k] = k.endsWith('Via') || k.endsWith('Paths') ? v : v[0]
  const r = await runSimulation({
    request: { principal: c.principal, action: c.action, resource: { resource: c.resource, accountId: c.account }, contextVariables },
    identityPolicies: (c.identity ?? []).map((p, i) => ({ name: String(i), policy: JSON.parse(p) })),
    serviceControlPolicies: [],
    resourceControlPolicies: [],
    permissionBoundaryPolicies: c.boundary ? [{ name: 'b', policy: JSON.parse(c.boundary) }] : undefined,
    sessionPolicy: c.session ? JSON.parse(c.session) : undefined,
    resourcePolicy: c.policy ? JSON.parse(c.policy) : undefined,
  }, {})
  console.log(JSON.stringify({ result: r.overallResult, error: r.errors ? JSON.stringify(r.errors) : undefined }))
}
