// The SDK names this module of Cloudflare's cloud, which workerd alone has not got. No agent here sends mail.
export class EmailMessage {}
