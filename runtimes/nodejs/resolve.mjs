// Resolution of bare names along NODE_PATH, for Node.js without module.registerHooks.
let parents = [];

export function initialize(data) { parents = data; }

export async function resolve(specifier, context, next) {
  try {
    return await next(specifier, context);
  } catch (err) {
    if (err.code !== 'ERR_MODULE_NOT_FOUND' || !/^(?:@[^/]+\/)?[^./#:][^:]*$/.test(specifier)) throw err;
    for (const parentURL of parents) {
      try {
        return await next(specifier, { ...context, parentURL });
      } catch { /* the next one */ }
    }
    throw err;
  }
}
