const dns = require('dns').promises
const https = require('https')

exports.handler = async (event) => {
  const { address } = await dns.lookup('sandbox.localdomain')
  const page = await new Promise((resolve, reject) => {
    https.get(event.url, (r) => {
      let text = ''
      r.on('data', (piece) => { text += piece })
      r.on('end', () => resolve(text))
    }).on('error', reject)
  })
  return address + ' ' + page
}
